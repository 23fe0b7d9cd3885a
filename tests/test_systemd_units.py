"""The units of examples/systemd."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from statsig_otel._times import SHUTDOWN_MARGIN, SHUTDOWN_TIMEOUT

UNITS = Path(__file__).parents[1] / "examples" / "systemd"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="LOUD: systemd-analyze is missing")
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    """The program that they name is replaced by one that exists."""
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/opt/statsig-otel/bin/statsig-otel", sys.executable)
        (tmp_path / unit.name).write_text(text)
    units = [str(tmp_path / unit.name) for unit in UNITS.iterdir()]
    ran = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    ours = [line for line in ran.stderr.splitlines() if "statsig-otel" in line]
    assert ours == []


def test_systemd_waits_until_a_shutdown_has_ended() -> None:
    found = re.search(r"^TimeoutStopSec=(\d+)$", (UNITS / "statsig-otel.service").read_text(), re.MULTILINE)
    assert found is not None
    assert int(found[1]) > SHUTDOWN_TIMEOUT + SHUTDOWN_MARGIN
