"""examples/kafka: the whole chain with the command of its README, and what is said where it can't run."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.conftest import needs_kafka
from tests.e2e.processes import clean_environment
from tests.e2e.service_process import ServiceProcess
from tests.e2e.statsig_client import ENV

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "kafka"
WITHOUT = "THE CHAIN CAN'T RUN ON THIS MACHINE"


def run(**variables: str) -> subprocess.CompletedProcess[str]:
    """What `make kafka ARGS=--once` runs."""
    command = [sys.executable, "examples/kafka/run.py", "--once"]
    return subprocess.run(
        command, cwd=ROOT, env=clean_environment(**variables), capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.timeout(45 * 60)
@pytest.mark.xdist_group("apache_kafka")
def test_the_chain_delivers_all_that_was_acknowledged_while_one_of_each_is_killed() -> None:
    done = run()
    if WITHOUT in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in ("replica", "broker", "Collector"):
        assert re.search(rf"killing {kind} 1, pid \d+", done.stdout)
        assert re.search(rf"{kind} 1 runs again, pid \d+", done.stdout)
    found = re.search(
        r"(\d+) changes were acknowledged; (\d+) delivered, \d+ of them again$", done.stdout, re.MULTILINE
    )
    assert found is not None
    assert 3 <= int(found[1]) <= int(found[2])


@pytest.mark.slow
def test_a_machine_without_java_is_told_what_it_needs(tmp_path: Path) -> None:
    done = run(PATH=str(tmp_path))
    assert done.returncode == 1
    assert re.search(rf"!! {WITHOUT}: (java|nginx) is not on the PATH", done.stderr)
    assert "Debian: apt-get install default-jre-headless maven nginx" in done.stderr
    assert "Traceback" not in done.stderr


@needs_kafka
def test_a_replica_answers_its_supervisor_and_prometheus_also_while_the_brokers_are_away() -> None:
    away = {f"KAFKA_{number}": "127.0.0.1:1" for number in (1, 2, 3)}
    free = {"WEBHOOK_ENDPOINT": "127.0.0.1:0", "HEALTH_ENDPOINT": "127.0.0.1:0", "METRICS_PORT": "0"}
    with ServiceProcess(EXAMPLE / "statsig-otel.yaml", env={**ENV, **away, **free}) as replica:
        log = "\n".join(replica.log)
        answers = {}
        for pattern, path in ((r"(http:\S+)/readyz", "/livez"), (r"(http:\S+)/metrics", "/metrics")):
            found = re.search(pattern, log)
            assert found is not None
            with urlopen(found[1] + path) as answer:
                answers[path] = answer.read().decode()
    assert "statsig_otel_receiver_requests_total" in answers["/metrics"]


def test_the_readme_names_what_there_is() -> None:
    readme = (EXAMPLE / "README.md").read_text()
    written = {path.name for path in EXAMPLE.iterdir() if path.is_file()} - {"README.md"}
    assert set(re.findall(r"^\| \[(\S+)\]\(\1\)", readme, re.MULTILINE)) == written
    files = "".join((EXAMPLE / name).read_text() for name in ("statsig-otel.yaml", "collector.yaml"))
    for name, default in re.findall(r"\$\{env:([A-Z_0-9]+)(?::-([^}]*))?\}", files):
        assert f"`{name}`" in readme
        assert not default or f"`{default}`" in readme
    assert "examples/kafka/run.py $(ARGS)" in (ROOT / "Makefile").read_text()
