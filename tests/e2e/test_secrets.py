"""No output of any command, no line of the log and no file of the service contains a secret of the configuration.

The service says as much as it can: debug level, backends, brokers and proxies that quote what they were sent, failing
TLS, audit logs that can't be read, forged webhooks, a reload with errors, files of secrets with something else in them.
"""

import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path

import pytest
import urllib3
from click.testing import CliRunner

from statsig_otel.plugin.cli.main import main
from statsig_otel.plugin.webhook.signature import sign
from tests.conftest import needs_kafka
from tests.e2e.canaries import ENV, FILES, SECRETS, SIGNING, Canaries, hidden, proxies
from tests.e2e.given_commands import commands_in, every_command
from tests.e2e.processes import Process
from tests.e2e.secret_peers import Peers, refusing_peers
from tests.e2e.service_process import ServiceProcess, environment, run_to_end
from tests.e2e.statsig_client import change
from tests.peers.audit_log import audit_entry
from tests.waiting import wait_until

http = urllib3.PoolManager(retries=False, timeout=20)


@dataclass
class Site:
    """A configuration with a secret of each kind, and all that was said about it.

    Attributes:
        canaries: The configuration.
        peers: What stands around the service.
        said: All output so far, by what made it.
        commands: The commands that were given, alone and with each of their options.
    """

    canaries: Canaries
    peers: Peers
    said: dict[str, str] = field(default_factory=dict)
    commands: set[str] = field(default_factory=set)

    @property
    def env(self) -> dict[str, str]:
        return {**ENV, **proxies(self.peers.proxy.port)}

    def ask(self, service: ServiceProcess, *paths: str) -> None:
        """Read the metrics, the health checks and, without a token, the live page."""
        for server in ("Metrics for Prometheus", "Health checks", "Live page"):
            for path in paths:
                answer = http.request("GET", f"{origin(service, server)}{path}")
                self.said[f"{server}: {path}"] = answer.data.decode()

    def read_page(self, url: str) -> None:
        """Read the live page, all that it leads to, and what wrong forms and wrong tokens are answered with."""
        token = {"Authorization": f"Bearer {SECRETS['page']}"}
        page = self.said["the live page"] = http.request("GET", f"{url}/", headers=token).data.decode()
        links = sorted(set(re.findall(r'href="(/(?:change|dead-letter)\?[^"]+)"', page)))
        assert len(links) > 2
        for path in (*links, "/other", "/page.js"):
            self.said[path] = http.request("GET", f"{url}{path}", headers=token).data.decode()
        wrong = http.request("POST", f"{url}/exporters", headers=token, fields={"exporter": "file"})
        self.said["a form of the live page"] = wrong.data.decode()
        basic = urllib3.make_headers(basic_auth=f"any:{SECRETS['wrong']}")
        for headers in (basic, {"Authorization": f"Bearer {SECRETS['wrong']}"}):
            answer = http.request("GET", f"{url}/?token={SECRETS['page']}", headers=headers)
            assert answer.status == 401
            self.said[f"the live page, {len(self.said)}"] = answer.data.decode()

    def give(self, *args: str, env: Mapping[str, str] | None = None) -> str:
        """Give a command, in this process: that is quicker."""
        done = CliRunner().invoke(main, args, env={**self.env, **(env or {})}, catch_exceptions=True)
        text = f"{done.output}\n{done.exception!r}"
        assert "Usage: " not in text, text
        self.commands |= commands_in(args)
        self.said[f"{' '.join(args)} {len(self.said)}"] = text
        return text

    def with_config(self, *args: str) -> str:
        return self.give(*args, "--config", str(self.canaries.config))

    def with_directory(self, *args: str) -> str:
        return self.give(*args, "--directory", str(self.canaries.folder / "queue"))

    def run_in_vain(self, why: str, *args: str) -> None:
        """Run the service with a configuration with which it can't start."""
        done = run_to_end("run", "--config", str(self.canaries.config), *args, env=self.env)
        assert done.returncode == 1
        self.commands |= commands_in(("run", "--config", *args))
        self.said[f"a start with {why} {args}"] = done.stdout + done.stderr

    @contextmanager
    def doctor_beside(self) -> Iterator[None]:
        """Let the doctor check the configuration while the block runs: he waits for the brokers for seconds."""
        program = (sys.executable, "-m", "statsig_otel", "doctor", "--config", str(self.canaries.config))
        with (
            Process(program, environment(self.env)) as plain,
            Process((*program, "--json"), environment(self.env)) as as_json,
        ):
            yield
            wait_until(lambda: not (plain.is_running or as_json.is_running), "the doctor has finished")
        for one in (plain, as_json):
            assert "kafka/untrusted" in one.output
            self.said[f"doctor {len(self.said)}"] = one.output

    def reconcile(self, receiver: str, *args: str) -> str:
        """Compare a receiver's audit log, in this process: it must not have to wait for another attempt."""
        until = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        return self.with_config("reconcile", "--receiver", receiver, "--since", "1h", "--until", until, *args)

    def reconcile_in_vain(self, receiver: str) -> None:
        """Compare an audit log that can't be reached, until that is said. The command would try again for minutes."""
        arguments = ("reconcile", "--config", str(self.canaries.config), "--receiver", receiver)
        with Process((sys.executable, "-m", "statsig_otel", *arguments), environment(self.env)) as process:
            process.wait_for("It is tried again")
        self.said[f"reconcile of {receiver}"] = process.output

    def explain(self, body: bytes) -> None:
        """Let a webhook be explained, with a signature that is right, and with one that is not."""
        file = self.canaries.folder / "body.json"
        file.write_bytes(body)
        for secret, others in product(
            (SECRETS["inline"], SECRETS["header"]), ((), ("--json", "--at", "2023-11-14T22:13:21Z"))
        ):
            headers = sign(body, secret=secret, timestamp_ms=1_700_000_000_000)
            signature, timestamp = (headers[name] for name in ("X-Statsig-Signature", "X-Statsig-Request-Timestamp"))
            given = ("--signature", signature, "--timestamp", timestamp, "--receiver", "statsig")
            self.with_config("explain", str(file), *given, *others)

    def read_files(self, when: str) -> None:
        """Read all that the service has written: the queue's files, and the lines of the `file` exporter."""
        every = [path for path in self.canaries.folder.rglob("*") if path.is_file()]
        written = [path for path in every if path not in self.canaries.sources]
        assert {"queue.db", "state.json", "lock", "changes.jsonl"} <= {path.name for path in written}
        for path in written:
            self.said[f"{path.name} {when}"] = path.read_bytes().decode("latin-1")

    @property
    def leaks(self) -> list[str]:
        """The secrets that were found, each with its place and the text around it."""
        found = hidden(self.canaries)
        return [
            f"{name} in {where}: {text[max(text.index(spelling) - 200, 0) :][:400]}"
            for where, text in self.said.items()
            for name, spellings in found.items()
            for spelling in spellings
            if spelling in text
        ]


def say_everything(site: Site) -> None:
    """Run the service, and let it and all commands say what they can."""
    canaries = site.canaries
    canaries.write()
    program = (sys.executable, "-m", "statsig_otel", "run", "--config", str(canaries.config))
    with Process(program, environment(site.env)) as process:
        process.wait_for("Webhook URL: ")
        site.said["the list of processes"] = listed(process.pid)
    site.said["a first run"] = process.output
    site.peers.log.entries = [audit_entry(1, int(time.time()) + 1800)]
    with ServiceProcess(canaries.config, env=site.env) as service:
        body = json.dumps({"data": [change(1), {**change(2), "timestamp": "never"}]}).encode()
        post_well_and_badly(site, service.url, body)
        wait_until(lambda: _all_tried(site.with_directory("queue", "--json")), "every exporter has said something")
        wait_until(lambda: all(map(service.has_logged, FAILURES)), "every other client has said something")
        with site.doctor_beside():
            give_commands(site, service.url, body)
        for line in (
            *('{"command": "queue"}', '{"command": "reload"}', '{"command": "print-config"}', '{"command": "status"}'),
            *('{"command": "journal", "arguments": {"records": true}}', "{"),
        ):
            site.said[f"control socket: {line}"] = control(canaries.folder / "queue", line)
        site.read_page(origin(service, "Live page"))
        site.ask(service, "/", "/metrics", "/readyz", "/livez", "/other")
        site.read_files("while it runs")
        change_queue(site)
        change_secrets(site, service)
    site.said["the log"] = "\n".join(service.log)
    site.said["the output"] = "\n".join(service.output)
    site.said |= {f"sent to {name}": text for name, text in site.peers.sent.items()}
    site.read_files("after its end")
    say_why_it_can_not_start(site)
    for command in ("components", "schema"):
        site.give(command)
    say_of_a_queue_that_nobody_uses(site)


def give_commands(site: Site, url: str, body: bytes) -> None:
    """Give all commands that change nothing in the queue but those that can't be given here."""
    folder = site.canaries.folder
    for arguments in (
        *(("queue",), ("queue", "resume", "otlp_http/blocked"), ("queue", "backup", str(folder / "copy of queue.db"))),
        *(("top", "--once"), ("top", "--json"), ("reload",)),
        *(
            ("dead-letters", command, *selected, *others)
            for command in ("list", "show")
            for selected in DEAD_LETTERS
            for others in ((), ("--json",))
        ),
    ):
        site.with_directory(*arguments)
        site.with_config(*arguments)
    send_webhooks(site, url)
    for arguments in (("validate", "--no-machine"), ("print-config",), ("print-config", "--mode", "redacted")):
        site.with_config(*arguments)
    site.with_config("validate", "--listen", "127.0.0.1:0")
    for receiver in ("statsig", "statsig/failing", "statsig/untrusted"):
        assert "SystemExit(3)" in site.reconcile(receiver)
    assert "1  missed" in site.reconcile("statsig/working", "--save", str(folder / "pages"))
    assert '"missed"' in site.reconcile("statsig/working", "--json")
    for receiver in ("statsig/away", "statsig/proxied"):
        site.reconcile_in_vain(receiver)
    site.explain(body)


def send_webhooks(site: Site, url: str) -> None:
    """Post webhooks by command, with right and wrong secrets, and with a file that is not a secret alone."""
    folder = site.canaries.folder
    site.give("send", "--list-samples")
    site.give("send", "--print", "--sample", "gate")
    site.give("send", "--url", url, env={"STATSIG_SIGNING_SECRET": SECRETS["header"]})
    site.give("send", "--url", url, "--verify-url", "--timeout", "20")
    assert "200 OK" in site.give("send", "--url", url, "--secret-file", str(folder / "secret"))
    for file in ("header", "config.yaml", "server.key"):
        site.give("send", "--url", url, "--secret-file", str(folder / file), "--ca-file", str(folder / "server.key"))


def change_queue(site: Site) -> None:
    """Give the commands that change what is in the queue, each also where it is refused."""
    assert "stays: " in site.with_directory("dead-letters", "replay", *map(str, range(1, 100)))
    for selected in DEAD_LETTERS:
        site.with_directory("dead-letters", "replay", "--json", *selected)
    site.with_config("dead-letters", "replay", "--to", "otlp_http/blocked", "--exporter", "otlp_http/rejected")
    site.with_config("queue", "skip", "otlp_http/blocked", "--count", "1")
    site.with_directory("queue", "skip", "otlp_http/retried", "--older-than", "1s")
    for arguments in (("queue", "remove", "otlp_http/blocked"), ("queue", "remove", "otlp_http/blocked", "--yes")):
        assert "SystemExit(1)" in site.with_config(*arguments)
    assert "Confirm with --yes" in site.with_directory("dead-letters", "drop", "--all")
    site.with_config("dead-letters", "drop", "--yes", "1")
    for selected in DEAD_LETTERS:
        site.with_directory("dead-letters", "drop", "--yes", "--json", *selected)


def say_of_a_queue_that_nobody_uses(site: Site) -> None:
    """Where no service runs, an exporter can be removed though it is configured, if the command does not know that."""
    site.canaries.write()
    for arguments in (("queue",), ("dead-letters", "list"), ("queue", "skip", "otlp_http/retried", "--count", "1")):
        site.with_config(*arguments)
    assert "is removed" in site.with_directory("queue", "remove", "otlp_http/retried", "--yes")


def change_secrets(site: Site, service: ServiceProcess) -> None:
    """Let files of secrets have something wrong in them, and then the configuration itself."""
    for name, text in {"secret": "{} ", "api_key": "a {}", "header": "a\n{}", "password": ""}.items():
        (site.canaries.folder / name).write_text(text.format(SECRETS["changed"]))
    wait_until(lambda: all(map(service.has_logged, KEPT)), "none of the files can be used")
    site.canaries.write(wrong=True)
    site.with_directory("reload")
    service.process.send_signal(signal.SIGHUP)
    wait_until(lambda: service.has_logged(INVALID, times=2), "it was told that nothing changes")
    for command in ("print-config", "queue"):
        site.with_config(command)


DEAD_LETTERS: Sequence[tuple[str, ...]] = (
    *(("--exporter", "otlp_http/rejected"), ("--receiver", "statsig"), ("--kind", "batch"), ("--all",)),
)
"""What dead letters can be selected by."""

FAILURES = (
    *(f"{name}: the audit log can't be compared now: " for name in ("statsig", "statsig/failing", "statsig/untrusted")),
    *(f"opentelemetry.exporter.otlp.proto.http.{signal}_exporter: Failed" for signal in ("metric", "trace")),
    "opentelemetry.exporter.otlp.proto.grpc.exporter: Failed to export ",
)
"""What the log says of each client that is not an exporter."""

INVALID = "Reload: the configuration has errors"

KEPT = (
    *("the secrets of statsig stay as they were", "the key for the audit log of statsig stays as it was"),
    *("keeps the password that it has", "keeps the headers that it has"),
)
"""What the log says of each file of secrets that has something else in it now."""


def post_well_and_badly(site: Site, url: str, body: bytes) -> None:
    now = time.time_ns() // 1_000_000
    for secret, moment, status in [
        *((secret, now, 200) for secret in SIGNING),
        ("s3cr3t-of-somebody-else", now, 401),
        (SECRETS["inline"], now - 10**9, 401),
    ]:
        answer = http.request("POST", url, body=body, headers=sign(body, secret=secret, timestamp_ms=moment))
        assert answer.status == status
        site.said[f"answer {status} {moment} {len(site.said)}"] = answer.data.decode()


def say_why_it_can_not_start(site: Site) -> None:
    """With errors in the configuration, in PEM files that it names, and in the environment."""
    for name, files in (
        ("errors", {"wrong": True}),
        ("PEM files", {"pem": f"-----BEGIN PRIVATE KEY-----\n{SECRETS['wrong']}\n-----END PRIVATE KEY-----\n"}),
    ):
        site.canaries.write(**files)
        site.run_in_vain(f"wrong {name}")
        site.run_in_vain(f"wrong {name}", "--listen", "127.0.0.1:0", "--log-level", "debug")
        for command in ("validate", "doctor"):
            site.with_config(command)
        site.with_config("doctor", "--json", "--listen", "127.0.0.1:0")
    for name, value in (
        ("HEADERS", f"api key={SECRETS['unused']}"),
        ("HEADERS", SECRETS["unused"]),
        ("LOGS_HEADERS", f"api-key={SECRETS['unused']}"),
        ("HEADERS", f"api-key={SECRETS['unused']}%0A"),
        ("ENDPOINT", f"http://user:{SECRETS['unused']}@localhost:1"),
        ("ENDPOINT", f"http://localhost:1/v1/logs?key={SECRETS['unused']}"),
    ):
        for command in ("validate", "doctor", "print-config"):
            site.give(command, env={f"OTEL_EXPORTER_OTLP_{name}": value})


def origin(service: ServiceProcess, server: str) -> str:
    """The URL of a server of the service, without a path, as the log tells it."""
    found = re.search(rf"{server}: (http://[^/]+)", "\n".join(service.log))
    assert found is not None, server
    return found[1]


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


@needs_kafka
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_secret_is_said(tmp_path: Path) -> None:
    """Nor a line of a private key, a value of a URL's query, or a header as JSON, HTML or a URL spell it."""
    folder = tmp_path / "site"
    folder.mkdir()
    with refusing_peers(tmp_path) as peers:
        site = Site(Canaries(folder, peers.at), peers)
        say_everything(site)
    assert site.leaks == []
    check_that_all_was_said(site)


def check_that_all_was_said(site: Site) -> None:
    """There was something to look at: each peer has quoted, and been quoted."""
    log = site.said["the log"]
    lines = log.splitlines()
    assert "gate_1" in site.said["changes.jsonl after its end"]
    assert sys.platform != "linux" or "--config" in site.said["the list of processes"]
    for exporter in ("otlp_http/blocked", "otlp_http/retried", "otlp_http/rejected", "otlp_grpc/blocked"):
        assert any(exporter in line and "not allowed: " in line for line in lines), exporter
    for exporter in ("otlp_http/untrusted", "otlp_grpc/untrusted", "kafka/untrusted", "statsig/untrusted"):
        assert any(exporter in line and "is not trusted" in line for line in lines), exporter
    for exporter in ("otlp_http/proxied", "otlp_http/tunneled", "otlp_grpc/proxied"):
        assert any(f"{exporter}: " in line and "407" in line for line in lines), exporter
    assert "otlp_http/warning: the backend accepted the records with a warning: not allowed: " in log
    assert any("kafka/away" in line and "Connection refused" in line for line in lines)
    assert any("kafka/refused" in line and "not allowed: writer" in line for line in lines)
    assert "statsig: the audit log can't be compared now: HTTP 401" in log
    assert "statsig/failing: the audit log can't be compared now: HTTP 500" in log
    assert "Connection refused" in site.said["reconcile of statsig/away"]
    assert "Tunnel connection failed: 407" in site.said["reconcile of statsig/proxied"]
    assert "OTEL_EXPORTER_OTLP_HEADERS" in log
    assert log.count(INVALID) >= 2
    assert len(KEPT) == len(FILES)
    explained = [text for where, text in site.said.items() if where.startswith("explain")]
    assert ["signature_wrong" in text for text in explained] == [False, False, True, True]
    assert "gate_1" in site.said["copy of queue.db while it runs"]
    assert "otlp_http/blocked" in site.said['control socket: {"command": "queue"}']
    assert "otlp_http/query" in site.said["Metrics for Prometheus: /metrics"]
    assert "otlp_http/query" in site.said["Health checks: /readyz"]
    assert "gate_1" in site.said["the live page"]
    assert "not allowed: " in site.said["the live page"]
    dead_letters = "".join(text for where, text in site.said.items() if where.startswith("dead-letters"))
    assert dead_letters.count("not allowed: ") >= 2
    assert "[REDACTED]" in dead_letters
    assert all(site.said[f"sent to {name}"] for name in ("metrics-grpc", "metrics-http", "traces-grpc", "traces-http"))
    left_out = {one for one in every_command() - site.commands if one.split()[0] != "demo"}
    assert left_out == set(), "give them above; only the demo takes no configuration"
    for where, text in site.said.items():
        assert "Traceback" not in text, f"{where}: {text[text.index('Traceback') - 400 :][:3000]}"


def test_sub_commands_and_options_are_told_apart() -> None:
    every = every_command()
    assert {"queue", "queue --json", "queue skip --count", "dead-letters drop", "demo --verbose"} < every
    assert not {"", "dead-letters", "queue --count"} & every
    for args, given in {
        ("queue", "--json", "--directory", "skip"): {"queue", "queue --json", "queue --directory"},
        ("queue", "skip", "queue", "--count=1"): {"queue skip", "queue skip --count"},
        ("demo", "-v"): {"demo", "demo --verbose"},
    }.items():
        assert commands_in(args) == given


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
