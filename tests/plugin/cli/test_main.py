"""The command's output where it can't be written, or is closed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FULL = Path("/dev/full")
CHANGE = {"eventName": "statsig::config_change", "timestamp": 5, "metadata": {"type": "Gate", "name": "x"}}


def in_shell(redirected: str, *arguments: str) -> tuple[int, str]:
    """The exit code and what is on standard error, without a shell's own words."""
    words = ["sh", "-c", f'exec "$@" {redirected}', "sh", sys.executable, "-m", "statsig_otel", *arguments]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stderr


@pytest.mark.skipif(not FULL.exists(), reason="the system has no device that is always full")
@pytest.mark.parametrize("command", [pytest.param("components", marks=pytest.mark.slow), "--help"])
def test_an_output_that_can_not_be_written_is_an_error(command: str) -> None:
    assert in_shell(f">{FULL}", command) == (1, "Error: the output can't be written: No space left on device\n")


def test_a_closed_output_loses_only_what_is_printed(tmp_path: Path) -> None:
    (tmp_path / "change.json").write_text(json.dumps([CHANGE]))
    assert in_shell(">&-", "explain", str(tmp_path / "change.json")) == (0, "")
