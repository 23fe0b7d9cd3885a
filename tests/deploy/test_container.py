"""The image and the compose file of examples/docker."""

import json
import os
import re
import shlex
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from ruamel.yaml import YAML

from statsig_otel import __version__
from tests.conftest import needs_clone
from tests.deploy.images import IMAGE, Podman, missing, podman
from tests.deploy.machine import ROOT, skipped_if_unavailable
from tests.deploy.page import SHELLS, commands, lines, run_with_answer
from tests.deploy.proxies import HEALTH_PATH, PATH
from tests.e2e.processes import Process
from tests.e2e.statsig_client import SECRET, change, http, post
from tests.peers.otlp_servers import GrpcSink
from tests.peers.ports import free_port
from tests.waiting import wait_until

FILES = ROOT / "examples" / "docker"
CONFIG = FILES / "config" / "statsig-otel.yaml"
FILE_NAMES = ("compose.yaml", "sidecar.yaml")
TOOLS = ROOT / "build" / "deploy" / "bin"

pytestmark = pytest.mark.slow

checked = pytest.mark.skipif(not TOOLS.exists(), reason="LOUD: hadolint and schemas are missing: make deploy-tools")


class Ports(NamedTuple):
    """Where the service and its backend listen in these tests."""

    webhook: int
    health: int
    metrics: int
    backend: int


@checked
def test_hadolint_finds_nothing() -> None:
    words = [str(TOOLS / "hadolint"), str(FILES / "Dockerfile")]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


@checked
@pytest.mark.parametrize("name", FILE_NAMES)
def test_the_compose_files_fit_their_schema(name: str) -> None:
    words = [str(TOOLS / "check-jsonschema"), "--builtin-schema=vendor.compose-spec", str(FILES / name)]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


@needs_clone
def test_neither_git_nor_a_build_takes_the_secrets() -> None:
    """Nor what else the commands of the page make. The build gets only what the Dockerfile copies."""
    made = {"backup.db", "backup.db.new", "examples/docker/secrets/signing-secret", "my-values.yaml"}
    ignored_by_git = subprocess.run(
        ["git", "check-ignore", *made], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(ignored_by_git.stdout.split()) == made
    ignored, *rest = [
        line for line in (FILES / "Dockerfile.dockerignore").read_text().splitlines() if not line.startswith("#")
    ]
    assert ignored == "*"
    assert rest.pop() == "**/__pycache__"
    copied = re.findall(r"^COPY (?!--)(.*) \S+$", (FILES / "Dockerfile").read_text(), re.MULTILINE)
    assert {line.removeprefix("!") for line in rest} == {name for line in copied for name in line.split()}


@pytest.mark.skipif(os.geteuid() != 0, reason="LOUD: only root can give files to the user of the image")
def test_the_commands_make_the_secrets_that_compose_mounts(tmp_path: Path) -> None:
    """All but the last: there is no Docker here."""
    *secrets, last = commands("In a container")[1].splitlines()
    first, _, following, rotation_end = commands("In a container")[2:6]
    writes = [first, following]
    assert last.startswith("docker compose --file examples/docker/compose.yaml up ")
    folder = tmp_path / "examples" / "docker"
    folder.mkdir(parents=True)
    subprocess.run(["sh", "-ec", "\n".join(secrets)], cwd=tmp_path, check=True)
    compose = YAML(typ="safe").load((FILES / "compose.yaml").read_text())["services"]["statsig-otel"]
    mounts = dict(volume.split(":")[:2] for volume in compose["volumes"])
    assert (mounts["./secrets"], mounts["./config"]) == ("/run/secrets", "/etc/statsig-otel")
    assert (folder / "secrets").stat().st_uid == 10001
    names = re.findall(r"/run/secrets/([a-z-]+)", CONFIG.read_text())
    for name in names:
        found = (folder / "secrets" / name).stat()
        assert (found.st_uid, found.st_mode & 0o777) == (10001, 0o400)
    assert (folder / "secrets" / "signing-secret").read_text().startswith("webhook-")
    for name, write in zip(names, writes, strict=True):
        for shell in SHELLS:
            run_with_answer(write, f"webhook-{name}-{shell}", shell=shell, folder=tmp_path, programs=tmp_path)
            assert (folder / "secrets" / name).read_text() == f"webhook-{name}-{shell}"
            found = (folder / "secrets" / name).stat()
            assert (found.st_uid, found.st_mode & 0o777) == (10001, 0o400)
    for _ in range(2):
        subprocess.run(["sh", "-c", rotation_end], cwd=tmp_path, check=False)
        assert (folder / "secrets" / names[0]).read_text() == f"webhook-{names[1]}-{SHELLS[-1]}"
        assert (folder / "secrets" / names[1]).read_text() == ""
        assert [(folder / "secrets" / name).stat().st_uid for name in names] == [10001, 10001]
    for source in mounts:
        assert source in {"./secrets", "queue"} or (FILES / source).exists()


def test_the_sidecar_s_file_changes_what_compose_yaml_has() -> None:
    """Docker merges both: maps by key, and volumes by the place where they are mounted."""
    both, sidecar = (YAML(typ="safe").load((FILES / name).read_text())["services"] for name in FILE_NAMES)
    assert sidecar.keys() == both.keys()
    assert sidecar["collector"]["environment"].keys() - both["collector"]["environment"].keys() == {"BACKEND_ENDPOINT"}
    (mounted,), (before,) = sidecar["collector"]["volumes"], both["collector"]["volumes"]
    assert mounted.split(":")[1:] == before.split(":")[1:]
    assert (FILES / mounted.split(":")[0]).exists()
    assert "${env:COLLECTOR_ENDPOINT" in CONFIG.read_text()


@contextmanager
def container(made: Podman, folder: Path, ports: Ports) -> Iterator[Process]:
    """The image as compose.yaml runs it: nothing to write but the queue, no privilege. And without any shell."""
    config = CONFIG.read_text()
    for shown, here in (
        ("0.0.0.0:8080", f"127.0.0.1:{ports.webhook}"),
        ("collector:4317", f"127.0.0.1:{ports.backend}"),
        ("health_check: #", f"health_check: {{endpoint: localhost:{ports.health}}} #"),
        ("port: 9464", f"port: {ports.metrics}"),
    ):
        assert shown in config
        config = config.replace(shown, here)
    (folder / "config").mkdir(exist_ok=True)
    (folder / "config" / "statsig-otel.yaml").write_text(config)
    shells = [f"--volume=/dev/null:/usr/bin/{shell}:ro" for shell in ("sh", "dash", "bash")]
    limits = ["--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges"]
    volumes = [
        f"--volume={folder}/config:/etc/statsig-otel:ro",
        f"--volume={folder}/secrets:/run/secrets:ro",
        "--volume=queue:/var/lib/statsig-otel",
    ]
    with Process(made.run("--name=service", *limits, *shells, *volumes, IMAGE), dict(os.environ)) as process:
        process.wait_for("Webhook URL: ")
        yield process


@pytest.mark.timeout(900)
@pytest.mark.skipif(missing() != "", reason=missing())
def test_the_image_runs_without_a_shell_and_keeps_its_queue(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "signing-secret").write_text(SECRET)
    (tmp_path / "secrets" / "next-signing-secret").touch()
    ports = Ports(free_port(), free_port(), free_port(), free_port())
    url = f"http://127.0.0.1:{ports.webhook}{PATH}"
    build, _, _, look, _, _, reload, backup, check, _, _, restore, remove = commands("In a container")
    queue = inside(look)[-1]
    with skipped_if_unavailable(), podman() as made:
        made.build(build)
        with container(made, tmp_path, ports) as process:
            assert post(url, change(1)).status == 200
            assert http.request("GET", f"http://127.0.0.1:{ports.webhook}{HEALTH_PATH}").status == 200
            check_process(made, ports)
            check_reload(made, reload, tmp_path)
            check_look(made, look, ports)
            check_backup(made, backup, tmp_path)
            assert post(url, change(2)).status == 200
            assert waiting(made, queue) == 3
            assert process.stop() == 0
        check_validation(made, check, tmp_path)
        old = check_restoring(made, restore, tmp_path)
        with container(made, tmp_path, ports) as process:
            assert waiting(made, queue) == 2, "as in the backup"
            directory = "/var/lib/statsig-otel"
            assert backup.count(f"--directory {directory} ") == 1
            check_backup(made, backup.replace(f"--directory {directory} ", f"--directory {directory}/{old} "), tmp_path)
            assert process.stop() == 0
        again = check_restoring(made, restore, tmp_path)
        with container(made, tmp_path, ports) as process:
            assert waiting(made, queue) == 3, "as before the first restore"
            check_removal(made, remove, old, again)
            assert process.stop() == 0
        with GrpcSink(port=ports.backend) as backend, container(made, tmp_path, ports):
            wait_until(lambda: backend.records, "the record that waited in the volume")


def check_reload(made: Podman, reload: str, folder: Path) -> None:
    """It reads what an editor writes, which puts a new file in the place of the old one."""
    config = folder / "config" / "statsig-otel.yaml"
    before = config.read_text()
    words = made.words("exec", "service", *shlex.split(reload)[6:])
    for text, code in ((f"{before}nonsense: 1\n", 1), (before, 0)):
        new = config.with_suffix(".new")
        new.write_text(text)
        new.rename(config)
        ran = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (ran.returncode, "nonsense" in ran.stderr) == (code, code == 1), ran.stdout + ran.stderr


COMPOSE = "docker compose --file examples/docker/compose.yaml "


def inside(block: str) -> list[list[str]]:
    """The commands that the page gives to `docker compose exec` and `cp`, for the container of the test."""
    assert all(line.startswith(COMPOSE) for line in lines(block))
    words = [shlex.split(line.removeprefix(COMPOSE)) for line in lines(block)]
    return [
        ["exec", "service", *one[2:]]
        if one[0] == "exec"
        else [word.replace("statsig-otel:/", "service:/") for word in one]
        for one in words
    ]


def waiting(made: Podman, queue: list[str]) -> int:
    (found,) = re.findall(r"^otlp_grpc +\w+ +(\d+) ", made(*queue), re.MULTILINE)
    return int(found)


def check_validation(made: Podman, commands: str, folder: Path) -> None:
    """The new image says whether it takes the configuration."""
    run, *options, service, validate, no_machine, config, path = shlex.split(lines(commands)[-1].removeprefix(COMPOSE))
    assert (run, options, service) == ("run", ["--rm", "--no-deps"], "statsig-otel")
    volumes = [f"--volume={folder}/config:/etc/statsig-otel:ro", f"--volume={folder}/secrets:/run/secrets:ro"]
    words = made.run(*volumes, IMAGE, validate, no_machine, config, path)
    ran = subprocess.run(words, capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("The configuration is valid.\n")


def check_restoring(made: Podman, commands: str, folder: Path) -> str:
    """The backup that `check_backup` made; the folder of the queue that was there."""
    _, read, _, restore, _ = lines(commands)
    assert read == "script=$(cat examples/docker/restore.py)"
    run, *options, service, c, script, less, file = shlex.split(restore.removeprefix(COMPOSE))
    assert (run, service, c, script, less, file) == ("run", "statsig-otel", "-c", "$script", "<", "backup.db")
    assert options == ["--rm", "--no-deps", "-T", "--entrypoint", "python3"]
    script = (FILES / "restore.py").read_text()
    words = made.run("--interactive", "--entrypoint=python3", "--volume=queue:/var/lib/statsig-otel", IMAGE, c, script)
    with (folder / file).open("rb") as backup:
        said = subprocess.run(words, stdin=backup, stdout=subprocess.PIPE, text=True, check=True).stdout
    (old,) = re.findall(r"in the folder (old-\S+)\.$", said)
    return str(old)


def check_removal(made: Podman, commands: str, old: str, again: str) -> None:
    """Of one of the two folders; as the page has the second command, it removes nothing."""
    show, remove = inside(commands)
    assert {old, again} < set(made(*show).split())
    as_printed = subprocess.run(made.words(*remove), capture_output=True, check=False)
    assert as_printed.returncode != 0
    made(*[word.replace("FOLDER", old) for word in remove])
    assert set(made(*show).split()) & {old, again} == {again}


def check_look(made: Podman, look: str, ports: Ports) -> None:
    """The doctor finds one fault: there is no backend. One record waits, and then the sample does, too."""
    doctor, send, queue = inside(look)
    assert waiting(made, queue) == 1
    told = subprocess.run(made.words(*doctor), capture_output=True, text=True, check=False).stdout
    assert re.findall(r"^(\S+(?: \S+)*) +failed ", told, re.MULTILINE) == ["exporters::otlp_grpc"], told
    shown = "http://localhost:8080/"
    assert sum(shown in word for word in send) == 1
    answer = made(*[word.replace(shown, f"http://127.0.0.1:{ports.webhook}/") for word in send])
    assert answer.startswith("200 OK\n")
    assert waiting(made, queue) == 2


def check_backup(made: Podman, commands: str, folder: Path) -> None:
    replace = "mv backup.db.new backup.db"
    assert lines(commands)[2] == replace
    backup, copy, remove = inside(commands.replace(f"{replace} &&\n", ""))
    made(*backup)
    made(*copy[:-1], str(folder / copy[-1]))
    subprocess.run(shlex.split(replace), cwd=folder, check=True)
    made(*remove)
    assert (folder / "backup.db").stat().st_mode & 0o077 == 0
    assert sqlite3.connect(folder / "backup.db").execute("PRAGMA integrity_check").fetchone() == ("ok",)
    again = subprocess.run(made.words(*remove), capture_output=True, check=False)
    assert again.returncode != 0


def check_process(made: Podman, ports: Ports) -> None:
    """Who it is, and what its health check says: the image's own, at the port of this test."""
    pid = made("inspect", "--format={{.State.Pid}}", "service").strip()
    status = Path(f"/proc/{pid}/status").read_text()
    for line in ("Uid:\t10001\t10001\t10001\t10001", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"):
        assert line in status
    image = json.loads(made("inspect", "--type=image", IMAGE))[0]
    assert image["Labels"]["org.opencontainers.image.version"] == __version__
    kind, *check = image["Healthcheck"]["Test"]
    assert kind == "CMD"
    assert "localhost:13133" in check[-1]
    assert b"statsig_otel_" in http.request("GET", f"http://127.0.0.1:{ports.metrics}/metrics").data
    for port, code in ((ports.health, 0), (free_port(), 1)):
        words = [word.replace("13133", str(port)) for word in check]
        ran = subprocess.run(made.run(f"--entrypoint={words[0]}", IMAGE, *words[1:]), capture_output=True, check=False)
        assert ran.returncode == code
