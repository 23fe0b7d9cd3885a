"""Every program of docs/embedding.md runs as it stands there, by the commands below it; only the port is another.

So does every program of the examples for a web framework, by each command of its README.
"""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from statsig_otel.plugin.webhook import DEFAULT_PATH
from tests.e2e.processes import Process, wait_until_listening
from tests.looped import looped
from tests.peers.otlp_servers import GrpcAnswer, GrpcSink
from tests.peers.ports import free_port
from tests.plugin.adapters import CHANGE, SECRET, VERIFICATION, assert_refused, body_of, signed
from tests.plugin.http_client import Address, exchange, request
from tests.waiting import wait_until

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "embedding.md").read_text()
BIN = Path(sys.executable).parent
BODY = body_of(CHANGE)


@dataclass(frozen=True)
class Program:
    """A program of the page: its files by their names, its commands, and those of a second block."""

    files: dict[str, str]
    commands: tuple[str, ...]
    others: str = ""


def blocks(section: str, *languages: str) -> list[str]:
    return re.findall(rf"```(?:{'|'.join(languages)})\n(.*?)```", section, re.DOTALL)


def programs() -> dict[str, Program]:
    """The programs by their headings."""
    found = {}
    for section in re.split(r"(?m)^## ", PAGE)[1:]:
        files = {block.partition("\n")[0].removeprefix("# "): block for block in blocks(section, "python", "yaml")}
        commands, *others = blocks(section, "sh") or [""]
        if commands:
            found[section.partition("\n")[0]] = Program(files, tuple(commands.splitlines()), *others)
    return found


def example(name: str) -> dict[str, Program]:
    """An example's program by each heading of its README that has commands."""
    folder = ROOT / "examples" / name
    files = {path.name: path.read_text() for path in sorted(folder.glob("*.py"))}
    sections = re.split(r"(?m)^## ", (folder / "README.md").read_text())[1:]
    commands = {f"{name}: {section.partition(chr(10))[0]}": blocks(section, "sh") for section in sections}
    return {heading: Program(files, tuple(found[0].splitlines())) for heading, found in commands.items() if found}


ON_PAGE = programs()
SMALLEST, FROM_FILE, WAITING, DJANGO, DJANGO_WSGI, FALCON_WSGI, OTHER, TOLD, REPLAY, OWN, EXPORTER, SDK, PURE = ON_PAGE
EXAMPLES = example("fastapi") | example("flask") | example("falcon")
FASTAPI, GUNICORN_FASTAPI, FLASK, DEVELOPMENT, FALCON = EXAMPLES
PROGRAMS = ON_PAGE | EXAMPLES
MOUNTED = f"/statsig{DEFAULT_PATH}"
"""The path of a receiver below a prefix."""


def test_every_block_of_code_belongs_to_a_program() -> None:
    files = [name for program in ON_PAGE.values() for name in program.files]
    assert len(files) == len(re.findall(r"```(?:python|yaml)\n", PAGE))
    assert all(re.fullmatch(r"[\w/.-]+\.(py|yaml)", name) for name in files)
    assert len(re.findall(r"```sh\n", PAGE)) == len(ON_PAGE) + 2


def test_the_table_of_programs_leads_to_them() -> None:
    anchors = [re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in ON_PAGE]
    assert set(anchors) - set(re.findall(r"\]\(#([^)]*)\)", PAGE)) == set()


def test_the_smallest_program_is_small() -> None:
    (code,) = PROGRAMS[SMALLEST].files.values()
    lines = [line for line in code.splitlines() if line and not line.startswith("#")]
    assert len(lines) <= 10
    assert len(re.findall(r"(?m)^from|^with", code)) == 2


def environment(**variables: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "STATSIG_"))}
    return {**kept, "PATH": f"{BIN}:{kept['PATH']}", "STATSIG_SIGNING_SECRET": SECRET, **variables}


def write(heading: str, folder: Path, port: int) -> str:
    """Write the files of a program, and those of other programs that its text refers to; its command, for a shell."""
    commands = PROGRAMS[heading].commands
    other = {FALCON_WSGI: FLASK, WAITING: FROM_FILE}.get(heading, heading)
    files = {**PROGRAMS[other].files, **PROGRAMS[heading].files}
    for name, code in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(at_port(code, port))
    kept = [line for line in commands if not line.startswith(("pip install ", "export "))]
    return at_port("\n".join([*kept[:-1], f"exec {kept[-1]}"]), port)


def at_port(text: str, port: int) -> str:
    return text.replace("8080", str(port))


@contextmanager
def running(heading: str, folder: Path, **variables: str) -> Iterator[tuple[Process, Address]]:
    """The program until SIGTERM, which it has to obey."""
    port = free_port()
    if heading in (DJANGO, DJANGO_WSGI) and not (folder / "manage.py").exists():
        subprocess.run([BIN / "django-admin", "startproject", "mysite", folder], check=True)
    command = write(heading, folder, port)
    with Process(["sh", "-c", f"cd {folder}\n{command}"], environment(**variables)) as process:
        try:
            wait_until_listening(process, port)
            # Flask's reloader listens long before there is somebody to answer.
            exchange(("127.0.0.1", port), request(method="GET", path="/"))
            yield process, ("127.0.0.1", port)
        except BaseException:
            print(process.output)
            raise


def assert_takes_webhooks(address: Address, path: str) -> None:
    verified = exchange(address, request(VERIFICATION, path=path))
    assert verified.json == {"verification_code": "abc123"}
    forged = signed(BODY, secret="webhook-another")
    assert_refused(exchange(address, request(BODY, path=path, headers=forged)), 401)
    taken = exchange(address, request(BODY, path=path, headers=signed(BODY)))
    assert (taken.status, taken.json["accepted"]) == (200, 1)


def path_of(heading: str) -> str:
    if heading in (FASTAPI, GUNICORN_FASTAPI):
        return MOUNTED
    return DEFAULT_PATH if heading in (SMALLEST, FROM_FILE, TOLD) else "/statsig"


@pytest.mark.slow
@pytest.mark.parametrize(
    "heading",
    [
        SMALLEST,
        FROM_FILE,
        FASTAPI,
        GUNICORN_FASTAPI,
        FLASK,
        DEVELOPMENT,
        DJANGO,
        DJANGO_WSGI,
        FALCON,
        FALCON_WSGI,
        OTHER,
    ],
)
def test_what_was_acknowledged_survives_a_kill(heading: str, tmp_path: Path) -> None:
    """Also where the backend was away all the time; and an orderly end after it sends what waits.

    Statsig may have the path with a slash at its end.
    """
    for host in ("fastapi", "django"):
        if host in heading.lower():
            pytest.importorskip(host)
    lock, path = tmp_path / "statsig-queue" / "lock", path_of(heading)
    with GrpcSink() as sink:
        sink.answer = GrpcAnswer(grpc.StatusCode.UNAVAILABLE)
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{sink.address}"}
        with running(heading, tmp_path, **variables) as (process, address):
            assert_takes_webhooks(address, path)
            sink.wait_for(1)
            if path.startswith("/statsig") and heading != OTHER:  # below another application, which goes on
                page = exchange(address, request(method="GET", path="/").replace(b"Host: test", b"Host: localhost"))
                assert page.status == (404 if "falcon" in heading.lower() else 200)
            killed = int(lock.read_text())
            os.kill(killed, signal.SIGKILL)
        sink.answer = GrpcAnswer()
        sink.requests.clear()
        with running(heading, tmp_path, **variables) as (process, address):
            again = exchange(address, request(BODY, path=f"{path}/", headers=signed(BODY)))
            assert again.status == 200, process.output
            assert (again.json["accepted"], again.json["duplicates"]) == (0, 1)
            assert int(lock.read_text()) != killed
            sink.wait_for(1)
            assert process.stop() in (0, -signal.SIGTERM)  # the latter is uvicorn's
        assert [record.event_name for record in sink.records] == ["statsig.config_change"]


@pytest.mark.slow
@pytest.mark.parametrize("heading", [GUNICORN_FASTAPI, FLASK, DJANGO_WSGI, FALCON_WSGI])
def test_a_reload_of_gunicorn_goes_on(heading: str, tmp_path: Path) -> None:
    """Nothing is refused or lost: a webhook before the reload, one during it, and one from the new worker."""
    lock, path = tmp_path / "statsig-queue" / "lock", path_of(heading)
    during, after = (body_of({**CHANGE, "timestamp": time}) for time in (1739400185199, 1739400185200))
    with GrpcSink() as sink:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{sink.address}"}
        with running(heading, tmp_path, **variables) as (process, address):
            assert_takes_webhooks(address, path)
            owner = lock.read_text()
            os.kill(process.pid, signal.SIGHUP)
            if heading == GUNICORN_FASTAPI:  # which resets connections until then, as the page says
                process.wait_for("Shutting down")
            assert exchange(address, request(during, path=path, headers=signed(during))).json["accepted"] == 1
            wait_until(lambda: lock.read_text() not in ("", owner))
            assert exchange(address, request(after, path=path, headers=signed(after))).json["accepted"] == 1
            again = exchange(address, request(during, path=path, headers=signed(during)))
            assert again.json["duplicates"] == 1
            assert process.stop() == 0
        times = [record.time_unix_nano // 1_000_000 for record in sink.records]
        assert sorted(times) == [1739400185198, 1739400185199, 1739400185200]


@pytest.mark.slow
def test_the_development_server_reloads(tmp_path: Path) -> None:
    """The process that watches the files owns nothing, and the next one that serves finds what the last one left."""
    lock = tmp_path / "statsig-queue" / "lock"
    with GrpcSink() as sink:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{sink.address}"}
        with running(DEVELOPMENT, tmp_path, **variables) as (process, address):
            assert_takes_webhooks(address, "/statsig")
            owner = int(lock.read_text())
            assert owner != process.pid
            (tmp_path / "program.py").write_text((tmp_path / "program.py").read_text() + "\n# edited\n")
            process.wait_for(r"(?s)(Debugger PIN.*){2}")
            again = exchange(address, request(BODY, path="/statsig", headers=signed(BODY)))
            assert again.json["duplicates"] == 1
            assert int(lock.read_text()) not in (owner, process.pid)


@pytest.mark.slow
def test_the_development_server_of_django_reloads(tmp_path: Path) -> None:
    pytest.importorskip("django")
    subprocess.run([BIN / "django-admin", "startproject", "mysite", tmp_path], check=True)
    write(DJANGO_WSGI, tmp_path, 0)
    port, lock, program = free_port(), tmp_path / "statsig-queue" / "lock", tmp_path / "mysite" / "wsgi.py"
    command = f"cd {tmp_path}\nexec {at_port(PROGRAMS[DJANGO_WSGI].others, port)}"
    variables = environment(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    with Process(["sh", "-c", command], variables) as process:
        wait_until_listening(process, port)
        assert_takes_webhooks(("127.0.0.1", port), "/statsig")
        owner = lock.read_text()
        assert int(owner) != process.pid
        # Django notices only what changes after its first look, and does not tell when that was.
        while "wsgi.py changed, reloading" not in process.output:
            program.touch()
            time.sleep(0.1)
        wait_until(lambda: lock.read_text() not in ("", owner), within=60)
        wait_until_listening(process, port)
        again = exchange(("127.0.0.1", port), request(BODY, path="/statsig", headers=signed(BODY)))
        assert again.json["duplicates"] == 1


@pytest.mark.slow
def test_a_reload_takes_the_file_over(tmp_path: Path) -> None:
    other = "webhook-another-0123456789"
    with GrpcSink() as sink:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{sink.address}"}
        with running(FROM_FILE, tmp_path, **variables) as (process, address):
            assert_takes_webhooks(address, DEFAULT_PATH)
            file = tmp_path / "statsig-otel.yaml"
            for text in ("receivers: [", file.read_text().replace("${env:STATSIG_SIGNING_SECRET}", other)):
                file.write_text(text)
                os.kill(process.pid, signal.SIGHUP)
            headers = signed(BODY, secret=other)
            wait_until(lambda: exchange(address, request(BODY, path=DEFAULT_PATH, headers=headers)).status == 200)
            assert process.stop() == 0


@pytest.mark.slow
def test_a_program_that_waits_heeds_signals_and_takes_over(tmp_path: Path) -> None:
    """It ends without a traceback, and what a SIGHUP asks for during the wait is done after it."""
    other = "webhook-another-0123456789"
    variables = environment(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    with running(FROM_FILE, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9") as (older, address):
        command = ["sh", "-c", f"cd {tmp_path}\n{write(WAITING, tmp_path, address[1])}"]
        for end in (signal.SIGTERM, signal.SIGINT):
            with Process(command, variables) as waiting:
                waiting.wait_for("Waiting for the queue's directory")
                os.kill(waiting.pid, end)
                wait_until(lambda waiting=waiting: not waiting.is_running)  # type: ignore[misc] # mypy can't see it
                assert waiting.stop() == 0
                assert "Traceback" not in waiting.output
        with Process(command, variables) as waiting:
            waiting.wait_for("Waiting for the queue's directory")
            file = tmp_path / "statsig-otel.yaml"
            file.write_text(file.read_text().replace("${env:STATSIG_SIGNING_SECRET}", other))
            os.kill(waiting.pid, signal.SIGHUP)
            assert older.stop() == 0
            waiting.wait_for("Webhook URL: ")
            headers = signed(BODY, secret=other)
            wait_until(lambda: exchange(address, request(BODY, path=DEFAULT_PATH, headers=headers)).status == 200)
            assert waiting.stop() == 0


def test_the_smallest_program_sends_what_it_takes(tmp_path: Path) -> None:
    with GrpcSink() as sink:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{sink.address}"}
        with running(SMALLEST, tmp_path, **variables) as (process, address):
            assert_takes_webhooks(address, DEFAULT_PATH)
            assert process.stop() == 0
            # Unbuffered, `print` writes word by word, and a line of the log may come between two.
            assert "Webhook URL:" in process.output
            assert f"http://127.0.0.1:{address[1]}{DEFAULT_PATH}" in process.output
        assert [record.event_name for record in sink.records] == ["statsig.config_change"]


@pytest.mark.slow
def test_the_metrics_and_spans_are_told(tmp_path: Path) -> None:
    """By the providers of the program, at its end at the latest."""
    with (
        GrpcSink() as sink,
        running(TOLD, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{sink.address}") as (process, address),
    ):
        assert_takes_webhooks(address, DEFAULT_PATH)
        sink.wait_for(1)
        assert process.stop() == 0
    for told in ('"statsig_otel_receiver_requests"', f'"name": "POST {DEFAULT_PATH}"', '"name": "send otlp_grpc"'):
        assert told in process.output


@pytest.mark.slow
def test_the_sample_reaches_the_smallest_program_as_printed(tmp_path: Path) -> None:
    with GrpcSink() as sink:
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{sink.address}",
            "STATSIG_SIGNING_SECRET": "webhook-try-out",
        }
        with running(SMALLEST, tmp_path, **variables) as (process, address):
            command = at_port(PROGRAMS[SMALLEST].others, address[1])
            sent = subprocess.run(["sh", "-ec", command], env=environment(), capture_output=True, text=True, check=True)
            assert '"accepted":1' in sent.stdout
            assert process.stop() == 0
        assert len(sink.records) == 1


@pytest.mark.slow
def test_the_falcon_program_is_tested_with_falcon_s_own_conductor(tmp_path: Path) -> None:
    """As the page says: a service starts once, and the conductor runs the lifespan once for several requests."""
    write(FALCON, tmp_path, 0)
    (tmp_path / "test_it.py").write_text("""
import asyncio, os, time
from falcon.testing import ASGIConductor
from program import app
from statsig_otel.plugin import sign

async def main():
    async with ASGIConductor(app) as conductor:
        for body in (b'{"data": []}', b'{"data": [{"eventName": "statsig::gate_exposure"}]}'):
            headers = sign(body, secret=os.environ["STATSIG_SIGNING_SECRET"], timestamp_ms=time.time_ns() // 1_000_000)
            print((await conductor.simulate_post("/statsig", body=body, headers=headers)).status)

asyncio.run(main())
""")
    variables = environment(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    ran = subprocess.run(
        [sys.executable, "test_it.py"], cwd=tmp_path, env=variables, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "200 OK\n200 OK\n"


def test_the_sdk_sends_what_is_taken(tmp_path: Path) -> None:
    with GrpcSink() as sink:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{sink.address}", "OTEL_BLRP_SCHEDULE_DELAY": "50"}
        with running(SDK, tmp_path, **variables) as (_, address):
            assert_takes_webhooks(address, DEFAULT_PATH)
            sink.wait_for(1)
        assert [record.event_name for record in sink.records] == ["statsig.config_change"]


@pytest.mark.slow
def test_the_consumer_of_ones_own_keeps_each_change_once(tmp_path: Path) -> None:
    with running(OWN, tmp_path) as (_, address):
        assert_takes_webhooks(address, DEFAULT_PATH)
        again = exchange(address, request(BODY, path=DEFAULT_PATH, headers=signed(BODY)))
        assert (again.json["accepted"], again.json["duplicates"]) == (0, 1)
        assert exchange(address, request(b"{", path=DEFAULT_PATH, headers=signed(b"{"))).status == 400
        (tmp_path / "changes.db").unlink()
        (tmp_path / "changes.db").mkdir()
        refused = exchange(address, request(BODY, path=DEFAULT_PATH, headers=signed(BODY)))
        assert_refused(refused, 503)
        (tmp_path / "changes.db").rmdir()
        assert_takes_webhooks(address, DEFAULT_PATH)
    connection = sqlite3.connect(tmp_path / "changes.db")
    assert len(connection.execute("SELECT uid FROM changes").fetchall()) == 1
    connection.close()


@pytest.mark.slow
def test_the_exporter_of_ones_own_writes_what_is_taken(tmp_path: Path) -> None:
    with running(EXPORTER, tmp_path) as (_, address):
        assert_takes_webhooks(address, DEFAULT_PATH)
        wait_until(lambda: (tmp_path / "titles.txt").read_text() == "layout_v2 updated\n")


def run_to_end(heading: str, folder: Path, **variables: str) -> tuple[str, str, int]:
    """What a program that ends by itself prints and complains about, and its exit status."""
    command = write(heading, folder, 0)
    ran = subprocess.run(
        ["sh", "-ec", command], cwd=folder, env=environment(**variables), capture_output=True, text=True, check=False
    )
    return ran.stdout, ran.stderr, ran.returncode


@pytest.mark.slow
def test_a_replay_sends_what_was_stored(tmp_path: Path) -> None:
    """A line that can't be read is named, and the others are sent."""
    (tmp_path / "bodies.jsonl").write_bytes(b"\n".join([BODY, b"", BODY[:-5], BODY, b"null"]))
    with GrpcSink() as sink:
        endpoint = f"http://{sink.address}"
        printed, complained, status = run_to_end(REPLAY, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
        assert printed == "1 accepted, 0 duplicates, 0 invalid\n0 accepted, 1 duplicates, 0 invalid\n"
        assert status == 1
        assert re.findall(r"(?m)^line (\d) is not replayed: \S", complained) == ["2", "3", "5"]
        assert "Traceback" not in complained
        assert [record.event_name for record in sink.records] == ["statsig.config_change"]


def test_the_pure_part_prints_what_it_mapped(tmp_path: Path) -> None:
    printed, complained, status = run_to_end(PURE, tmp_path)
    assert re.fullmatch(r"[0-9a-f]{32} 1 record\n0 invalid, 0 ignored\n", printed)
    assert (complained, status) == ("", 0)


@looped("heading", PROGRAMS)
def test_a_program_uses_public_names_only(heading: str) -> None:
    code = "\n".join(PROGRAMS[heading].files.values())
    imports = re.findall(r"(?m)^ *from (statsig_otel\S*) import", code)
    public = {"statsig_otel", "statsig_otel.config", "statsig_otel.exporters", "statsig_otel.plugin"}
    assert set(imports) <= public
    assert imports


@pytest.fixture
def typed(tmp_path: Path) -> list[Path]:
    """The programs and the examples, each in a folder of its own, and settings with secrets as a person writes them."""
    folders = []
    for number, heading in enumerate([*ON_PAGE, FASTAPI, FLASK, FALCON]):
        folder = tmp_path / f"program{number}"
        for name, code in PROGRAMS[heading].files.items():
            file = folder / ("hooks.py" if name == "gunicorn.conf.py" else name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(code)
        folders.append(folder)
    folders.append(tmp_path / "plain_strings")
    folders[-1].mkdir()
    (folders[-1] / "settings.py").write_text(
        "from pathlib import Path\n"
        "from statsig_otel.exporters import ClientTlsSettings, KafkaSettings, OtlpGrpcSettings, OtlpHttpSettings\n"
        "from statsig_otel.plugin import (BatchSettings, ChangeMatchSettings, FilterSettings, SendingQueueSettings,\n"
        "    ServerTlsSettings, StatsigReceiverSettings)\n"
        'StatsigReceiverSettings(signing_secrets=["webhook-..."], user="hash", hash_key="key",\n'
        '    tls=ServerTlsSettings(cert_file=Path("cert.pem"), key_file=Path("key.pem")),\n'
        '    filter=FilterSettings(include=ChangeMatchSettings(types=["gate"]),\n'
        '        exclude=[ChangeMatchSettings(tags=["a"])]))\n'
        'OtlpHttpSettings(endpoint="https://h", headers={"api-key": "key"}, tls=ClientTlsSettings(ca_pem="pem"))\n'
        'OtlpGrpcSettings(endpoint="h:1", tls=ClientTlsSettings(insecure=True))\n'
        'KafkaSettings(brokers=["h:1"], tls=ClientTlsSettings(ca_file="ca.pem"))\n'
        "SendingQueueSettings(batch=BatchSettings(max_size=100))\n"
        'OtlpHttpSettings.model_validate({"endpoint": "https://h", "tls": {"key_pem": "key"}})\n'
    )
    for example in ("agent", "exporter", "grafana", "serverless"):
        folders.append(tmp_path / example)
        shutil.copytree(ROOT / "examples" / example, folders[-1])
    return folders


@pytest.mark.slow
def test_the_programs_pass_mypy(typed: list[Path], tmp_path: Path) -> None:
    # Django has no types of its own.
    options = ["--strict", "--explicit-package-bases", "--disable-error-code", "import-untyped"]
    for folder in typed:
        command = [sys.executable, "-m", "mypy", *options, "--cache-dir", str(tmp_path / "cache"), "."]
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, f"{folder.name}\n{ran.stdout}"


@pytest.mark.slow
def test_the_programs_pass_pyright(typed: list[Path], tmp_path: Path) -> None:
    roots = [{"root": folder.name} for folder in typed]
    rules = {"typeCheckingMode": "strict", "reportMissingTypeStubs": False, "executionEnvironments": roots}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(rules))
    command = [str(BIN / "basedpyright"), "--pythonpath", sys.executable, "."]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
    assert "0 errors, 0 warnings" in ran.stdout
