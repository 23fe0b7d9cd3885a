"""examples/exporter: its outcomes in front of a real chat, and, installed with pip, the commands of its README."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from examples.exporter.statsig_otel_chat import EXPORTER, ChatExporter, ChatSettings
from statsig_otel.exporters import Blocked, Delivered, Outcome, Rejected, RetryLater
from statsig_otel.plugin.record.mapper import Mapper
from statsig_otel.plugin.webhook.body import parse
from tests.e2e.service_process import ServiceProcess, environment, run_to_end
from tests.looped import looped
from tests.peers.http_server import LocalServer
from tests.peers.ports import free_port
from tests.plugin.adapters import CHANGE, body_of
from tests.waiting import wait_until

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "exporter"
README = (EXAMPLE / "README.md").read_text()
KEY = "the-secret-part"


@dataclass
class Chat:
    """A chat's webhook: keeps the messages, and answers as it is told."""

    answer: tuple[int, str, Mapping[str, str]] = (200, "ok", {})
    hang: threading.Event | None = None
    drips: bool = False
    messages: list[tuple[str, str]] = field(default_factory=list)
    refuses: str | None = None  # what it takes no message with
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/services/T0/B0/{KEY}"

    def texts(self, path: str = f"/services/T0/B0/{KEY}") -> list[str]:
        return [text for at, text in self.messages if at == path]


@contextmanager
def chat(**keys: Any) -> Iterator[Chat]:
    told = Chat(**keys)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            text = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"]
            told.messages.append((self.path, text))
            if told.hang is not None:
                told.hang.wait(30)
                return
            if told.drips:
                with suppress(OSError):  # the client has ended it
                    self.wfile.write(b"HTTP/1.1 2")
                    while not ended.wait(0.05):
                        self.wfile.write(b"0")
                return
            status, said, headers = told.answer
            if told.refuses is not None and told.refuses in text:
                status, said = 400, "invalid_payload"
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(said.encode())

    ended = threading.Event()
    with LocalServer(Handler) as server:
        told.port = server.port
        try:
            yield told
        finally:
            ended.set()
            if told.hang is not None:
                told.hang.set()


def exporter(url: str) -> ChatExporter:
    made = ChatExporter("chat", ChatSettings.model_validate({"url": url}))
    made.start()
    return made


def records(*events: Mapping[str, object]) -> bytes:
    payload = parse(body_of(*events))
    return b"".join(record for change in Mapper().map(payload, 1).changes for record in change.records)


def changed(name: str, **metadata: object) -> dict[str, object]:
    about = CHANGE["metadata"]
    assert isinstance(about, dict)
    return {**CHANGE, "user": {"name": "Jane & Co"}, "metadata": {**about, "name": name, **metadata}}


def test_a_batch_is_one_message_with_a_line_for_each_change() -> None:
    payload = records(changed("first", description=""), changed("<!channel>", description="a\n  b " + "x" * 400))
    with chat() as there:
        assert exporter(there.url).send(payload, 2, 10) == Delivered()
    (message,) = there.texts()
    first, second = message.split("\n")
    assert first == "first updated by Jane &amp; Co"
    assert second.startswith("&lt;!channel&gt; updated by Jane &amp; Co: a b xxx")
    assert len(second.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")) == 300


@looped(
    ("answer", "outcome"),
    [
        ((204, "", {}), Delivered()),
        ((429, "slow down", {"Retry-After": "30"}), RetryLater("429 slow down", 30.0)),
        ((503, "", {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}), RetryLater("503")),
        ((400, "invalid_payload", {}), Rejected("400 invalid_payload")),
        ((413, "", {}), Rejected("413")),
        ((404, "no_service", {}), Blocked("404 no_service")),
        ((403, "action_prohibited", {}), Blocked("403 action_prohibited")),
        ((302, "", {"Location": "/elsewhere"}), Blocked("302")),
    ],
)
def test_an_answer_is_an_outcome(answer: tuple[int, str, Mapping[str, str]], outcome: Outcome) -> None:
    with chat(answer=answer) as there:
        assert exporter(there.url).send(records(CHANGE), 1, 10) == outcome


def test_nobody_there_is_later_and_the_reason_holds_no_key() -> None:
    outcome = exporter(f"http://127.0.0.1:{free_port()}/{KEY}").send(records(CHANGE), 1, 10)
    assert outcome == RetryLater("no answer: ConnectionRefusedError")


@pytest.mark.parametrize("keys", [{"hang": threading.Event()}, {"drips": True}])
def test_the_timeout_is_for_the_whole_call(keys: dict[str, Any]) -> None:
    with chat(**keys) as there:
        assert isinstance(exporter(there.url).send(records(CHANGE), 1, 0.3), RetryLater)
        assert there.texts()


def test_shutdown_ends_a_send() -> None:
    with chat(hang=threading.Event()) as there:
        made = exporter(there.url)
        outcomes: list[Outcome] = []
        sending = threading.Thread(target=lambda: outcomes.append(made.send(records(CHANGE), 1, 60)))
        sending.start()
        wait_until(lambda: bool(there.texts()))
        made.shutdown()
        sending.join(10)
        assert [type(outcome) for outcome in outcomes] == [RetryLater]
        made.shutdown()


def test_the_settings_are_checked_and_hide_the_url() -> None:
    with pytest.raises(ValueError, match="must be a URL"):
        ChatSettings.model_validate({"url": f"hooks.example/{KEY}"})
    with pytest.raises(ValueError, match="Port could not be cast"):
        ChatSettings.model_validate({"url": f"https://hooks.example:none/{KEY}"})
    assert KEY not in repr(EXPORTER.settings.model_validate({"url": f"https://hooks.example/{KEY}"}))


def commands() -> list[list[str]]:
    """The README's commands, but for the variables that they need."""
    lines = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.strip() and not line.strip().startswith("export ")]


@pytest.mark.slow
def test_the_commands_of_the_readme(tmp_path: Path) -> None:
    """Installed, listed, validated and run; it delivers, follows a reload, and keeps what the chat refuses."""
    install, components, validate, run, send = commands()
    assert install == ["pip", "install", "."]
    target = tmp_path / "installed"
    offline = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    subprocess.run([sys.executable, "-m", *install[:2], *offline, *install[2:]], cwd=EXAMPLE, check=True)

    path = os.pathsep.join(filter(None, [str(target), os.environ.get("PYTHONPATH", "")]))
    variables = {
        "PYTHONPATH": path,
        "STATSIG_SIGNING_SECRET": "webhook-x",
        "STATSIG_OTEL_DIRECTORY": str(tmp_path / "q"),
    }
    listed = run_to_end(*components[1:], env=variables)
    assert 'name: chat\n    module: "statsig-otel-chat 0.1.0"\n    built_in: false\n' in listed.stdout

    config = tmp_path / "config.yaml"
    config.write_text((EXAMPLE / "config.yaml").read_text().replace("localhost:8080", "127.0.0.1:0"))
    with chat() as there:
        variables["CHAT_WEBHOOK_URL"] = there.url
        assert validate[-2:] == run[-2:] == ["--config", "config.yaml"]
        valid = run_to_end(*validate[1:-1], str(config), env=variables)
        assert (valid.returncode, valid.stderr) == (0, "")
        assert run[1:-2] == ["run"]
        with ServiceProcess(config, env=variables) as service:
            deliver(send, service.url, variables)
            wait_until(lambda: len(there.texts()) == 1)

            # Installed while it runs, and used after a reload: another type of the same module.
            info = target / "talk-1.dist-info"
            info.mkdir()
            (info / "METADATA").write_text("Metadata-Version: 2.1\nName: talk\nVersion: 1\n")
            (info / "entry_points.txt").write_text("[statsig_otel.exporters]\ntalk = statsig_otel_chat:EXPORTER\n")
            text = config.read_text().replace("${env:CHAT_WEBHOOK_URL}", f"{there.url}-rotated")
            config.write_text(text.replace("  chat:", "  talk:").replace("[chat, ", "[talk, "))
            service.process.send_signal(signal.SIGHUP)
            wait_until(lambda: any("exporters::talk: is new" in line for line in service.log))
            there.refuses = "sample_gate"
            deliver(send, service.url, variables)
            wait_until(lambda: there.texts(f"/services/T0/B0/{KEY}-rotated"))
            deliver([*send, "--sample", "experiment"], service.url, variables)  # which is taken
            wait_until(lambda: any("new dead letters: 1" in line for line in service.log))
            assert there.texts(f"/services/T0/B0/{KEY}-rotated")
        dead_letters = run_to_end("dead-letters", "list", "--directory", str(tmp_path / "q"), env=variables)
        assert re.search(r"talk .*400 invalid_payload", dead_letters.stdout)
        assert KEY not in "\n".join([*service.log, *service.output, listed.stdout, valid.stdout, dead_letters.stdout])


def deliver(command: list[str], url: str, variables: Mapping[str, str]) -> None:
    words = [url if word.startswith("http://localhost:8080/") else word for word in command[1:]]
    assert words != command[1:]
    sent = subprocess.run(
        [sys.executable, "-m", "statsig_otel", *words], env=environment(variables), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert sent.returncode == 0, sent.stdout + sent.stderr
