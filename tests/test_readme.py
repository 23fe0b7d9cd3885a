"""Every command and file that README.md and the quick start show works as it stands there."""

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import urllib3

from statsig_otel.config.grammar import check
from statsig_otel.config.source import read
from statsig_otel.plugin.settings.catalog import COMPONENTS
from tests.e2e.service_process import ServiceProcess, environment
from tests.peers.otlp_servers import GrpcSink
from tests.waiting import wait_until

ROOT = Path(__file__).parent.parent
QUICK_START = "docs/quick-start.md"
COLLECTOR_PORT = 4317
RECEIVER_PORT = 8080


def blocks(language: str, file: str = "README.md") -> list[str]:
    """The fenced blocks of a language, without their indentation."""
    text = (ROOT / file).read_text()
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


documented = pytest.mark.usefixtures("documented_ports")

COMMANDS = [line for file in ("README.md", QUICK_START) for block in blocks("sh", file) for line in block.splitlines()]
RUNS = [line for line in COMMANDS if "statsig-otel run" in line]
SENDS = [line for line in COMMANDS if "statsig-otel send" in line]
MAKES = [line for line in COMMANDS if line.startswith("make ")]
READS = [line for line in COMMANDS if line.startswith("read ")]
INSTALL = [line for line in COMMANDS if line not in RUNS + SENDS + MAKES + READS]
SECRET = "webhook-0123456789abcdef0123456789abcdef"


def test_every_command_is_tested_here() -> None:
    assert sorted(RUNS + SENDS + MAKES + READS + INSTALL) == sorted(COMMANDS)
    assert (len(RUNS), len(SENDS), len(READS), len(INSTALL)) == (3, 1, 2, 3)
    assert all("venv" in line for line in INSTALL)


def test_ci_runs_the_make_commands() -> None:
    """`make test` can't run itself; what runs it is the build."""
    assert MAKES == ["make demo", "make test"]
    script = (ROOT / ".ci" / "run").read_text()
    for command in MAKES:
        assert re.search(rf"^(stage|tests) {command}\b", script, re.MULTILINE)


def secret_in_the_environment() -> dict[str, str]:
    """What the shell gives to the commands behind the line that reads the secret."""
    (line,) = set(READS)
    words = ["bash", "-c", f"{line}; printenv STATSIG_SIGNING_SECRET"]
    given = subprocess.run(words, input=f"{SECRET}\n", capture_output=True, text=True, check=True)
    return {"STATSIG_SIGNING_SECRET": given.stdout.rstrip("\n")}


def split(command: str) -> tuple[dict[str, str], list[str]]:
    """The variables and the words of a shell command."""
    words = shlex.split(command)
    variables = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
    return variables, words[len(variables) :]


@contextmanager
def collector() -> Iterator[GrpcSink]:
    """A backend at the collector's usual port, and the receiver's own free."""
    for port in (COLLECTOR_PORT, RECEIVER_PORT):
        deadline = time.monotonic() + 10  # the test before may just be letting it go
        while not _is_free(port):
            if time.monotonic() > deadline:
                pytest.skip(f"PORT {port} IS IN USE ON THIS MACHINE: the README's commands can't be run as they stand")
            time.sleep(0.1)
    with GrpcSink(port=COLLECTOR_PORT) as backend:
        yield backend


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@documented
def test_the_five_minutes_of_the_set_up() -> None:
    """The commands in their order: without a secret, with it, and a sample change."""
    without_secret, with_secret, _ = RUNS
    with collector() as backend:
        variables, words = split(without_secret)
        assert words == ["venv/bin/statsig-otel", "run"]
        with ServiceProcess(env=variables) as service:
            assert service.url == f"http://127.0.0.1:{RECEIVER_PORT}/api/v1/data/events/receiver/statsig"
            path = re.search(r"`https://YOUR-HOST(\S+)`", (ROOT / QUICK_START).read_text())
            assert path is not None
            assert service.url.endswith(path[1])
            code = b'{"data": {"event": "url_verification", "verification_code": "abc123"}}'
            assert urllib3.request("POST", service.url, body=code).json() == {"verification_code": "abc123"}
        variables, words = split(with_secret)
        assert words == ["venv/bin/statsig-otel", "run"]
        secret = secret_in_the_environment()
        with ServiceProcess(env={**variables, **secret}):
            variables, words = split(SENDS[0])
            command = [sys.executable, "-m", "statsig_otel", *words[1:]]
            sent = subprocess.run(
                command, env=environment({**variables, **secret}), capture_output=True, text=True, check=False
            )
            assert sent.returncode == 0, sent.stdout + sent.stderr
        assert [record.event_name for record in backend.records] == ["statsig.config_change"]


def saved(config: str, folder: Path) -> tuple[Path, dict[str, str]]:
    """The file with a configuration, and the variables of the command that runs it."""
    (command,) = [line for line in RUNS if "--config" in line]
    variables, words = split(command)
    file = folder / words[-1]
    file.write_text(config)
    return file, variables | secret_in_the_environment()


@documented
def test_the_configuration_file(tmp_path: Path) -> None:
    config, _ = blocks("yaml", QUICK_START)
    file, variables = saved(config, tmp_path)
    assert list(check(read(file, environ=variables), COMPONENTS).exporters) == ["otlp_grpc"]
    with collector(), ServiceProcess(file, env=variables, folder=tmp_path) as service:
        assert service.url.endswith("/statsig")


def test_the_live_page(tmp_path: Path) -> None:
    found = re.search(r"`(zpages: \{.*\})`", (ROOT / QUICK_START).read_text())
    assert found is not None
    config, _ = blocks("yaml", QUICK_START)
    config = config.replace("extensions:\n", f"extensions:\n  {found[1]}\n", 1)
    file, variables = saved(config.replace("[file_storage]", "[file_storage, zpages]"), tmp_path)
    assert check(read(file, environ=variables), COMPONENTS).service_extensions == ("file_storage", "zpages")


@documented
@pytest.mark.parametrize("secrets", ["", "[]"])
def test_without_a_collector(secrets: str, tmp_path: Path) -> None:
    """Both before and after there is a secret: as the page says, `[]` stands for none."""
    _, config = blocks("yaml", QUICK_START)
    if secrets:
        config = re.sub(r"signing_secrets: .*", f"signing_secrets: {secrets}", config)
    file, variables = saved(config, tmp_path)
    with collector(), ServiceProcess(file, env=variables, folder=tmp_path) as service:
        _, words = split(SENDS[0])
        command = [sys.executable, "-m", "statsig_otel", *words[1:]]
        sent = subprocess.run(command, env=environment(variables), capture_output=True, text=True, check=False)
        assert sent.returncode == (1 if secrets else 0), sent.stdout + sent.stderr
        if not secrets:
            wait_until(lambda: any("sample_gate updated" in line for line in service.output))


def test_links_lead_to_files() -> None:
    for file in ("README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / file).read_text()):
            assert ((ROOT / file).parent / target).exists(), f"{file}: {target}"


def test_the_index_names_every_page_and_example() -> None:
    text = (ROOT / "docs" / "index.md").read_text().partition("```")[0]
    pages = {f"docs/{target}" for target in re.findall(r"\]\((?!https?:)([^)#]+\.md)\)", text)}
    named = {(ROOT / page).resolve() for page in pages}
    assert {*(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*/README.md")} <= named | {ROOT / "docs/index.md"}


@pytest.mark.slow
@documented
def test_the_installation(tmp_path: Path) -> None:
    """In a copy of what git has, so that nothing is taken from the work tree by accident; then without that copy."""
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(source)], check=True)
    env = {**os.environ, "PIP_CONSTRAINT": str(source / "constraints.txt")}
    for line in INSTALL[:2]:
        subprocess.run(line, shell=True, cwd=source, env=env, check=True, timeout=600)
    (source / "statsig_otel").rename(source / "hidden")
    version = subprocess.run(INSTALL[2], shell=True, cwd=source, env=env, capture_output=True, text=True, check=True)
    assert version.stdout.startswith("statsig-otel, version ")
    service = subprocess.Popen(  # as in a shell that knows nothing of the installation
        f"exec env {RUNS[0]}",
        shell=True,
        cwd=source,
        env=environment({"PYTHONPATH": "", "PATH": os.defpath}),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert service.stdout is not None
        assert service.stdout.readline().startswith("Webhook URL: ")
    finally:
        service.terminate()
        assert service.wait(30) == 0
        assert service.stdout is not None
        service.stdout.close()


def test_the_changelog_knows_the_version() -> None:
    from statsig_otel import __version__

    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in changelog or f"## [{__version__}]" in changelog


def test_no_page_installs_from_an_index_where_the_package_is_not() -> None:
    """Somebody else could take the name there. Once it is published, this test goes."""
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*/*.md")]:
        found = re.findall(r"(?:pip|pipx|uv|uvx)(?: pip)?(?: install| run)? ['\"]?statsig-otel\b.*", page.read_text())
        assert found == [], page


def test_the_chart_and_the_image_have_the_version() -> None:
    """The chart twice: its own, and that of the image that it runs by default."""
    from statsig_otel import __version__

    chart = (ROOT / "examples" / "kubernetes" / "Chart.yaml").read_text()
    assert re.findall(r'(?m)^(?:version|appVersion): "?([^"\n]+)"?$', chart) == [__version__, __version__]
    image = (ROOT / "examples" / "docker" / "Dockerfile").read_text()
    assert re.findall(r"image\.version=(\S+)", image) == [__version__]
