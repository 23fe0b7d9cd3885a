"""The LoggerProviderConsumer with the oldest OpenTelemetry that the package allows: its log API is private still."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TEST = "tests/exporters/local/test_logger_provider.py"


def oldest(tmp_path: Path) -> Path:
    """Constraints: OpenTelemetry at its lower bounds, all else as it is pinned, but protobuf, which follows it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = [re.fullmatch(r"(opentelemetry-[a-z-]+)>=([0-9.]+)", line) for line in project["dependencies"]]
    lowest = [f"{bound[1]}=={bound[2]}.*" for bound in bounds if bound]
    assert len(lowest) == 4
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    kept = [line for line in pinned if not line.startswith(("opentelemetry-", "protobuf"))]
    file = tmp_path / "oldest.txt"
    file.write_text("\n".join([*kept, *lowest]))
    return file


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_its_tests_pass_with_the_oldest_opentelemetry(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    env = {**os.environ, "PIP_CONSTRAINT": str(oldest(tmp_path)), "PYTHONPATH": ""}
    tools = ("pytest", "pytest-timeout", "hypothesis", "trustme")
    subprocess.run([python, "-m", "pip", "install", "-q", str(ROOT), *tools], env=env, check=True)
    ran = subprocess.run(
        [python, "-m", "pytest", TEST, "-q", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    assert "1 skipped" in ran.stdout
