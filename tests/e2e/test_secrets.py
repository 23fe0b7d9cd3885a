"""No output of any command, no line of the log and no file of the service contains a secret of the configuration.

The service says as much as it can: debug level, backends that quote the headers which they were sent, failing TLS,
forged webhooks, a reload with errors.
"""

import base64
import html
import json
import os
import re
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import grpc
import pytest
import urllib3
from click.testing import CliRunner
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped] # the package has no py.typed

from statsig_otel.exporters import OtlpGrpcSettings, OtlpHttpSettings
from statsig_otel.plugin import StatsigReceiverSettings
from statsig_otel.plugin.cli.main import main
from statsig_otel.plugin.webhook.signature import sign
from tests.e2e.processes import Process
from tests.e2e.service_process import ServiceProcess, environment, run_to_end
from tests.e2e.statsig_client import change
from tests.peers.certs import Authority, ServerTls
from tests.peers.otlp_servers import GrpcAnswer, GrpcSink, HttpAnswer, HttpSink, Received, free_port, partial_success
from tests.waiting import wait_until

http = urllib3.PoolManager(retries=False, timeout=20)
SECRETS = {
    name: f"s3cr3t-{name}-0123456789abcdef"
    for name in (
        *("environment", "file", "inline", "hash", "bearer", "header", "listed", "unused", "metrics", "traces"),
        "page",
    )
}
SPECIAL = 's3cr3t "with" <signs> & +/='
"""A text that is written otherwise in JSON, in HTML and in a URL."""

QUERY = "s3cr3t-query-0123456789abcdef"
"""Stands in a URL: `https://host/v1/logs?key=...`."""

SIGNING = [SECRETS["environment"], SECRETS["file"], SECRETS["inline"]]
ENV = {
    "STATSIG_SIGNING_SECRET": SECRETS["environment"],
    "OTEL_EXPORTER_OTLP_HEADERS": f"api-key={SECRETS['unused']}",
    "OTEL_LOG_LEVEL": "debug",
}


def quoting(received: Received, spell: Callable[[str], str] = str) -> str:
    """What was sent, as some backends tell it."""
    return "not allowed: " + "; ".join(spell(value) for value in received.headers.values() if "s3cr3t" in value)


def as_text(status: int, spell: Callable[[str], str]) -> Callable[[Received], HttpAnswer]:
    return lambda received: HttpAnswer(status, {"Content-Type": "text/plain"}, quoting(received, spell).encode())


def as_status(received: Received) -> HttpAnswer:
    return HttpAnswer(400, body=Status(message=quoting(received)).SerializeToString())


def as_grpc(received: Received) -> GrpcAnswer:
    text = quoting(received)
    details = Status(code=16, message=text).SerializeToString()
    return GrpcAnswer(grpc.StatusCode.UNAUTHENTICATED, text, (("grpc-status-details-bin", details),))


HTTP_ANSWERS: Mapping[str, Callable[[Received], HttpAnswer]] = {
    "blocked": as_text(401, json.dumps),
    "retried": as_text(503, html.escape),
    "elsewhere": as_text(404, quote),
    "rejected": as_status,
    "query": lambda received: HttpAnswer(
        403, {"Content-Type": "text/plain"}, received.path.rpartition("=")[2].encode()
    ),
    "partly": lambda received: HttpAnswer(body=partial_success(1, quoting(received))),
    "warning": lambda received: HttpAnswer(body=partial_success(0, quoting(received))),
}


@dataclass
class Site:
    """A configuration with a secret of each kind, and all that was said about it.

    Attributes:
        folder: Where its files are.
        config: The configuration's file.
        exporters: The exporters' settings.
        key: Lines of the private key that stands in it.
        ports: Of the metrics, the health checks and the live page.
        said: All output so far, by what made it.
    """

    folder: Path
    exporters: dict[str, dict[str, object]]
    key: list[str]
    ports: tuple[int, int, int] = field(default_factory=lambda: (free_port(), free_port(), free_port()))
    said: dict[str, str] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    def write(self, *, wrong: bool = False) -> None:
        exporters = dict(self.exporters)
        secrets = ["${env:STATSIG_SIGNING_SECRET}", "${file:secret}", SECRETS["inline"]]
        if wrong:  # next to secrets, and with secrets where they can't be
            secrets += ["", f" {SECRETS['inline']}"]
            exporters["otlp_http/a"] = {
                "endpoint": f"http://user:{SECRETS['bearer']}@localhost:1",
                "headers": {"api-key": f"{SECRETS['header']}\n", "nested": [SECRETS["header"]]},
                "hedaers": {"api-key": SECRETS["header"]},
            }
            exporters["otlp_grpc/a"] = {
                "endpoint": "localhost:1",
                "headers": [{"name": "x", "valeu": SECRETS["listed"]}, {"name": "y", "value": [SECRETS["listed"]]}],
                "tls": {"key_pem": "\n".join(self.key)},
            }
        receiver = {"endpoint": "127.0.0.1:0", "signing_secrets": secrets, "user": "hash", "hash_key": SECRETS["hash"]}
        if wrong:
            receiver["hash_kye"] = SECRETS["hash"]
        (self.folder / "secret").write_text(SECRETS["file"] + "\n")
        configuration = {
            "receivers": {"statsig": receiver},
            "exporters": exporters,
            "extensions": {
                "file_storage": {"directory": str(self.folder / "queue"), "min_free_bytes": 0},
                "health_check": {"endpoint": f"127.0.0.1:{self.ports[1]}"},
                "zpages": {"endpoint": f"127.0.0.1:{self.ports[2]}", "token": SECRETS["page"]},
            },
            "service": {
                "telemetry": {
                    "logs": {"level": "debug"},
                    "metrics": {"readers": self._readers()},
                    "traces": {"processors": self._processors()},
                },
                "extensions": ["file_storage", "health_check", "zpages"],
                "pipelines": {"logs": {"receivers": ["statsig"], "exporters": list(exporters)}},
            },
        }
        self.config.write_text(json.dumps(configuration, indent=2))

    def _readers(self) -> list[object]:
        otlp = {"protocol": "http/protobuf", "endpoint": "http://localhost:1", "headers": {"key": SECRETS["metrics"]}}
        return [
            {"pull": {"exporter": {"prometheus": {"host": "127.0.0.1", "port": self.ports[0]}}}},
            {"periodic": {"interval": "1s", "exporter": {"otlp": otlp}}},
        ]

    def _processors(self) -> list[object]:
        otlp = {"protocol": "http/protobuf", "endpoint": "http://localhost:1", "headers": {"key": SECRETS["traces"]}}
        return [{"batch": {"schedule_delay": "1s", "exporter": {"otlp": otlp}}}]

    def ask(self, *paths: str) -> None:
        """Read the metrics and the health checks."""
        for port in self.ports:
            for path in paths:
                self.said[f"{port}{path}"] = http.request("GET", f"http://127.0.0.1:{port}{path}").data.decode()

    def read_page(self) -> None:
        """Read the live page, all that it leads to, and what a wrong form is answered with."""
        url, token = f"http://127.0.0.1:{self.ports[2]}", {"Authorization": f"Bearer {SECRETS['page']}"}
        page = self.said["the live page"] = http.request("GET", f"{url}/", headers=token).data.decode()
        links = sorted(set(re.findall(r'href="(/(?:change|dead-letter)\?[^"]+)"', page)))
        assert len(links) > 2
        for path in (*links, "/other", "/page.js"):
            self.said[path] = http.request("GET", f"{url}{path}", headers=token).data.decode()
        wrong = http.request("POST", f"{url}/exporters", headers=token, fields={"exporter": "file"})
        self.said["a form of the live page"] = wrong.data.decode()

    def give(self, *args: str, env: Mapping[str, str] | None = None) -> str:
        """Give a command, in this process: that is quicker."""
        done = CliRunner().invoke(main, args, env={**ENV, **(env or {})}, catch_exceptions=True)
        text = f"{done.output}\n{done.exception!r}"
        self.said[f"{' '.join(args)} {len(self.said)}"] = text
        return text

    def with_config(self, *args: str) -> str:
        return self.give(*args, "--config", str(self.config))

    def explain(self, body: bytes) -> None:
        """Let a webhook be explained, with a signature that is right, and with one that is not."""
        file = self.folder / "body.json"
        file.write_bytes(body)
        for secret in (SECRETS["inline"], SECRETS["header"]):
            headers = sign(body, secret=secret, timestamp_ms=1_700_000_000_000)
            signature, timestamp = (headers[name] for name in ("X-Statsig-Signature", "X-Statsig-Request-Timestamp"))
            self.with_config("explain", str(file), "--signature", signature, "--timestamp", timestamp)

    def read_files(self, when: str) -> None:
        """Read all that the service has written: the queue's files, and the lines of the `file` exporter."""
        written = [path for path in self.folder.rglob("*") if path.is_file() and path not in self.sources]
        assert {"queue.db", "state.json", "lock", "changes.jsonl"} <= {path.name for path in written}
        for path in written:
            self.said[f"{path.name} {when}"] = path.read_bytes().decode("latin-1")

    @property
    def sources(self) -> set[Path]:
        """The files that the user has written, secrets included."""
        return {self.config, self.folder / "secret"}


def site_that_has_said_everything(folder: Path) -> Site:
    authority = Authority()
    identity = authority.issue("client")
    tls = ServerTls(Authority().issue("localhost"))
    sinks = {name: HttpSink() for name in HTTP_ANSWERS}
    for name, sink in sinks.items():
        sink.answer = HTTP_ANSWERS[name]
    with GrpcSink() as first, HttpSink(tls=tls) as second, GrpcSink(tls=tls) as third:
        first.answer = as_grpc
        headers = {"authorization": f"Bearer {SECRETS['bearer']}", "api-key": SECRETS["header"], "special": SPECIAL}
        mutual = {"cert_pem": identity.chain.decode(), "key_pem": identity.key.decode()}
        common = {"headers": headers, "retry_on_failure": {"initial_interval": "50ms", "max_interval": "100ms"}}
        listed = {
            **common,
            "headers": [{"name": "api-key", "value": SECRETS["listed"]}, {"name": "s", "value": SPECIAL}],
        }
        exporters: dict[str, dict[str, object]] = {
            **{f"otlp_http/{name}": {"endpoint": sink.url, **common} for name, sink in sinks.items()},
            "otlp_http/query": {"logs_endpoint": f"{sinks['query'].url}/v1/logs?key={QUERY}"},
            "otlp_http/untrusted": {"endpoint": second.url, "tls": mutual, **common},
            "otlp_grpc/blocked": {"endpoint": first.address, "tls": {"insecure": True}, **listed},
            "otlp_grpc/untrusted": {"endpoint": third.address, "tls": mutual, **listed},
            "file": {"path": str(folder / "changes.jsonl")},
            "debug": {"verbosity": "detailed"},
        }
        found = Site(folder, exporters, identity.key.decode().splitlines()[1:-1])
        found.write()
        for sink in sinks.values():
            sink.__enter__()
        try:
            _say_everything(found)
        finally:
            for sink in sinks.values():
                sink.close()
        return found


def _say_everything(site: Site) -> None:
    about_queue = ("--directory", str(site.folder / "queue"))
    program = (sys.executable, "-m", "statsig_otel", "run", "--config", str(site.config))
    with Process(program, environment(ENV)) as process:
        process.wait_for("Webhook URL: ")
        site.said["the list of processes"] = listed(process.pid)
    with ServiceProcess(site.config, env=ENV) as service:
        body = json.dumps({"data": [change(1), {**change(2), "timestamp": "never"}]}).encode()
        now = time.time_ns() // 1_000_000
        for secret, moment, status in [
            *((secret, now, 200) for secret in SIGNING),
            ("s3cr3t-of-somebody-else", now, 401),
            (SECRETS["inline"], now - 10**9, 401),
        ]:
            answer = http.request(
                "POST", service.url, body=body, headers=sign(body, secret=secret, timestamp_ms=moment)
            )
            assert answer.status == status
            site.said[f"answer {status} {moment} {len(site.said)}"] = answer.data.decode()
        wait_until(lambda: _all_tried(site.give("queue", "--json", *about_queue)), "every exporter has said something")
        for arguments in (("queue",), ("dead-letters", "list"), ("dead-letters", "list", "--json"), ("reload",)):
            site.give(*arguments, *about_queue)
        for number in range(1, 4):
            site.give("dead-letters", "show", str(number), *about_queue)
        site.give("send", service.url, env={"STATSIG_SIGNING_SECRET": SECRETS["header"]})
        for arguments in (("doctor",), ("doctor", "--json"), ("validate",), ("print-config",), ("queue",)):
            site.with_config(*arguments)
        site.explain(body)
        site.give("queue", "backup", str(site.folder / "copy of queue.db"), *about_queue)
        for line in (
            *('{"command": "queue"}', '{"command": "reload"}', '{"command": "print-config"}', '{"command": "status"}'),
            *('{"command": "journal", "arguments": {"records": true}}', "{"),
        ):
            site.said[f"control socket: {line}"] = control(site.folder / "queue", line)
        site.read_page()
        site.ask("/", "/metrics", "/readyz", "/livez", "/other")
        assert "otlp_http/query" in site.said[f"{site.ports[0]}/metrics"]
        assert "otlp_http/query" in site.said[f"{site.ports[1]}/readyz"]
        site.read_files("while it runs")
        site.write(wrong=True)
        site.give("reload", *about_queue)
        service.process.send_signal(signal.SIGHUP)
        wait_until(lambda: sum("Reload: " in line for line in service.log) >= 3, "it was told that nothing changes")
        for arguments in (("doctor",), ("validate",), ("print-config",), ("queue",)):
            site.with_config(*arguments)
    site.said["the log"] = "\n".join(service.log)
    site.said["the output"] = "\n".join(service.output)
    site.read_files("after its end")
    done = run_to_end("run", "--config", str(site.config), env=ENV)
    assert done.returncode == 1
    site.said["a start that fails"] = done.stdout + done.stderr
    for name, value in (
        ("HEADERS", f"api key={SECRETS['unused']}"),
        ("HEADERS", SECRETS["unused"]),
        ("HEADERS", f"api-key={SECRETS['unused']}%0A"),
        ("ENDPOINT", f"http://user:{SECRETS['unused']}@localhost:1"),
    ):
        for command in ("validate", "doctor"):
            site.give(command, env={f"OTEL_EXPORTER_OTLP_{name}": value})
    for command in ("components", "schema"):
        site.give(command)


def control(queue: Path, line: str) -> str:
    """What the control socket answers to a line."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.path.relpath(queue / "control.sock"))  # a path of a socket is short
        client.sendall(line.encode() + b"\n")
        return client.makefile().read()


def listed(pid: int) -> str:
    """What other users of the machine see of a process: its command line, and the names of its threads."""
    process = Path(f"/proc/{pid}")
    if not process.exists():  # not Linux
        return ""
    names = [file.read_text() for file in process.glob("task/*/comm")]
    assert len(names) > 1
    return "".join([(process / "cmdline").read_text(), (process / "stat").read_text(), *names])


def _all_tried(report: str) -> bool:
    """Whether each exporter has delivered all, or has an error."""
    found = json.loads(report.rpartition("\n")[0])["exporters"]
    return all(one["last_error"] or not one["waiting"] for one in found)


def spellings(secret: str) -> set[str]:
    """How a program may write it. In base64 it depends on where it begins, as in `Bearer KEY`."""
    encoded = secret.encode()
    inside = {base64.b64encode(bytes(before) + encoded).decode()[4:-4] for before in range(3)}
    return {secret, repr(secret)[1:-1], encoded.hex(), quote(secret), quote(secret, safe=""), *inside}


@pytest.mark.slow
def test_no_secret_is_said(tmp_path: Path) -> None:
    """Nor a line of a private key, a value of a URL's query, or a header as JSON, HTML or a URL spell it."""
    site = site_that_has_said_everything(tmp_path)
    assert len(site.key) > 1
    hidden = {
        **{name: spellings(secret) for name, secret in SECRETS.items()},
        "a private key": set(site.key),
        "a header": {*spellings(SPECIAL), json.dumps(SPECIAL)[1:-1], html.escape(SPECIAL), quote(SPECIAL)},
        "a query": {QUERY},
    }
    for where, text in site.said.items():
        for name, found in hidden.items():
            assert not [spelling for spelling in found if spelling in text], f"{name} in {where}"
    check_that_all_was_said(site)


MISPLACED: Sequence[str] = (
    "receivers: {SECRET: {}}",
    "receivers: {statsig: {SECRET: }}",
    "receivers: {statsig: {signing_secrets: {SECRET: }}}",
    "receivers: {statsig: SECRET}",
    "exporters: {SECRET: {}}",
    "SECRET: {}",
    "service: {pipelines: {logs: {receivers: [SECRET], exporters: [SECRET]}}}",
    "service: {pipelines: {logs: {SECRET: []}}, extensions: [SECRET]}",
    "extensions: {file_storage: {SECRET: 1}}",
)
"""A signing secret of Statsig where a key or an id belongs, which errors show."""


def test_a_signing_secret_in_the_place_of_a_key_is_not_said(tmp_path: Path) -> None:
    secret = "webhook-0123456789abcdefS3CR3T"
    config = tmp_path / "config.yaml"
    for place in MISPLACED:
        config.write_text(place.replace("SECRET", secret))
        for command in ("validate", "run", "doctor", "components"):
            said = CliRunner().invoke(main, [command, "--config", str(config)])
            assert secret not in said.output, f"{command}: {place}"
            assert said.exit_code != 0, f"{command}: {place}"


WRONG: Mapping[str, tuple[Callable[..., object], Callable[[str], Mapping[str, object]]]] = {
    "a key that is not known": (StatsigReceiverSettings, lambda one: {"signing_secrets": [one], "hash_kye": one}),
    "a secret that is a list": (StatsigReceiverSettings, lambda one: {"signing_secrets": [one], "hash_key": [one]}),
    "secrets that are a mapping": (StatsigReceiverSettings, lambda one: {"signing_secrets": {"a": one}}),
    "a secret with a space": (StatsigReceiverSettings, lambda one: {"signing_secrets": [one, f" {one}"]}),
    "a secret in another key": (StatsigReceiverSettings, lambda one: {"signing_secrets": [one], "user": one}),
    "a header with a line end": (OtlpHttpSettings, lambda one: {"endpoint": "http://h", "headers": {"a": f"{one}\n"}}),
    "a header that is a list": (OtlpGrpcSettings, lambda one: {"endpoint": "h:1", "headers": {"a": [one]}}),
    "headers that are a string": (OtlpHttpSettings, lambda one: {"endpoint": "http://h", "headers": one}),
    "a password in a URL": (OtlpHttpSettings, lambda one: {"endpoint": f"http://user:{one}@h"}),
    "a private key": (OtlpHttpSettings, lambda one: {"endpoint": "https://h", "tls": {"key_pem": one, "x": one}}),
}
"""Settings, and arguments that are wrong."""


@pytest.mark.parametrize("wrong", WRONG)
def test_no_traceback_of_what_is_wrong_in_code_contains_a_secret(wrong: str) -> None:
    """With the errors behind it, which Python prints too: pydantic's would quote the values."""
    canary = SECRETS["inline"]
    settings, arguments = WRONG[wrong]
    with pytest.raises((ValueError, TypeError)) as caught:
        settings(**arguments(canary))
    lines = traceback.format_exception(caught.value)
    assert not [line for line in lines if any(spelling in line for spelling in spellings(canary))]


def check_that_all_was_said(site: Site) -> None:
    """There was something to look at: each backend has quoted, and been quoted."""
    log = site.said["the log"]
    assert "gate_1" in site.said["changes.jsonl after its end"]
    assert sys.platform != "linux" or "--config" in site.said["the list of processes"]
    for exporter in ("otlp_http/blocked", "otlp_http/retried", "otlp_http/rejected", "otlp_grpc/blocked"):
        assert any(exporter in line and "not allowed: " in line for line in log.splitlines()), exporter
    for exporter in ("otlp_http/untrusted", "otlp_grpc/untrusted"):
        assert any(exporter in line and "is not trusted" in line for line in log.splitlines()), exporter
    assert "otlp_http/warning: the backend accepted the records with a warning: not allowed: " in log
    assert "OTEL_EXPORTER_OTLP_HEADERS" in log
    assert log.count("Reload: the configuration has errors") >= 2
    explained = [text for where, text in site.said.items() if where.startswith("explain")]
    assert ["answers 401" in text for text in explained] == [False, True]
    assert "gate_1" in site.said["copy of queue.db while it runs"]
    assert "otlp_http/blocked" in site.said['control socket: {"command": "queue"}']
    assert "gate_1" in site.said["the live page"]
    assert "not allowed: " in site.said["the live page"]
    dead_letters = "".join(text for where, text in site.said.items() if where.startswith("dead-letters"))
    assert dead_letters.count("not allowed: ") >= 2
    assert "[REDACTED]" in dead_letters
    for where, text in site.said.items():
        assert "Traceback" not in text, f"{where}: {text[text.index('Traceback') - 400 :][:3000]}"
