"""docs/webhook.md: the lines that sign a change by hand, and those that end a rotation, do so."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.service_process import ServiceProcess, environment

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent  # has a python3, which not every system has
SECRET = "webhook-0123456789abcdef"


def test_the_end_of_a_rotation_loses_no_secret_when_it_is_run_again(tmp_path: Path) -> None:
    (line,) = re.findall(r"```sh\n(grep .*?)```", (ROOT / "docs" / "webhook.md").read_text(), re.DOTALL)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "current").write_text("old")
    (tmp_path / "secrets" / "next").write_text("new")
    for _ in range(2):
        subprocess.run(["sh", "-c", line], cwd=tmp_path, check=False)
        assert [(tmp_path / "secrets" / name).read_text() for name in ("current", "next")] == ["new", ""]


@pytest.mark.skipif(
    shutil.which("curl") is None, reason="LOUD: curl is missing, the lines of docs/webhook.md are not tried"
)
def test_a_change_is_signed_by_hand(tmp_path: Path) -> None:
    """The shell gives the secret to no program as an argument: the list of processes shows those."""
    (lines,) = re.findall(r"```sh\n(url=.*?)```", (ROOT / "docs" / "webhook.md").read_text(), re.DOTALL)
    config = tmp_path / "config.yaml"
    config.write_text(
        f"receivers: {{statsig: {{endpoint: 'localhost:0', signing_secrets: [{SECRET}]}}}}\n"
        "exporters: {debug: {}}\n"
        "extensions: {file_storage: {directory: queue}}\n"
        "service:\n"
        "  extensions: [file_storage]\n"
        "  pipelines: {logs: {receivers: [statsig], exporters: [debug]}}\n"
    )
    with ServiceProcess(config, folder=tmp_path) as service:
        there = re.sub(r"(?m)^url=http://localhost:8080(.*)", lambda found: f"url={service.url}", lines)
        assert service.url in there
        assert "$STATSIG_SIGNING_SECRET" not in there
        sent = subprocess.run(
            ["sh", "-eu", "-c", there],
            env=environment({"STATSIG_SIGNING_SECRET": SECRET, "PATH": f"{BIN}:{os.environ['PATH']}"}),
            capture_output=True,
            text=True,
            check=False,
        )
    assert '"accepted":1,' in sent.stdout, sent.stdout + sent.stderr
