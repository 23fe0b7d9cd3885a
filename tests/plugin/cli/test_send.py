"""`statsig-otel send` against real HTTP servers, mostly in this process."""

import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import MappingProxyType

import pytest
from click.testing import CliRunner

from statsig_otel.plugin.cli.main import main
from statsig_otel.plugin.demo.samples import SAMPLES
from statsig_otel.plugin.demo.webhook_client import Answer, SendError, read_secret
from statsig_otel.plugin.record.change_event import ChangeEvent
from statsig_otel.plugin.record.record import uid
from statsig_otel.plugin.webhook import body as webhook
from statsig_otel.plugin.webhook.signature import verify
from tests.looped import looped
from tests.peers.certs import Authority
from tests.peers.http_server import LocalServer

SECRET = "webhook-0123456789abcdef"
NOW_MS = 1_750_000_000_000


@dataclass(frozen=True)
class Received:
    path: str
    headers: dict[str, str]
    body: bytes


class Receiver(LocalServer):
    """An HTTP server that keeps what comes in and answers as it is told; `echo` answers URL verifications."""

    def __init__(
        self,
        *,
        status: int = 200,
        answer: bytes = b'{"accepted": 1, "duplicates": 0, "ignored": 0, "invalid": 0}',
        headers: Mapping[str, str] = MappingProxyType({}),
        echo: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.answer = answer
        self.requests: list[Received] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests.append(Received(self.path, dict(self.headers.items()), body))
                said = receiver.answer
                if echo:
                    said = json.dumps({"verification_code": json.loads(body)["data"]["verification_code"]}).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(said)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(said)

        super().__init__(Handler, tls)

    @property
    def url(self) -> str:
        return f"{self.origin}/api/v1/data/events/receiver/statsig"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def send(*arguments: str | Path, secret: str | None = SECRET, stdin: bytes = b"") -> Result:
    environment = {"STATSIG_SIGNING_SECRET": secret}
    done = CliRunner().invoke(main, ["send", *map(str, arguments)], env=environment, input=stdin)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return Result(done.exit_code, done.stdout, done.stderr)


def send_as_process(*arguments: str | Path, stdin: bytes = b"") -> Result:
    environment = {**os.environ, "STATSIG_SIGNING_SECRET": SECRET}
    command = [sys.executable, "-m", "statsig_otel", "send", *map(str, arguments)]
    done = subprocess.run(command, env=environment, input=stdin, capture_output=True, timeout=60, check=False)
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


def check_signed(received: Received, secret: str = SECRET) -> None:
    verify(
        received.body,
        signature=received.headers["X-Statsig-Signature"],
        timestamp=received.headers["X-Statsig-Request-Timestamp"],
        secrets=[secret],
        now_ms=time.time_ns() // 1_000_000,
        tolerance=60,
    )


@pytest.mark.parametrize(
    "body",
    [
        b'{"data":[{"eventName":"x"}]}',
        b'[ {"eventName" : "x"},\r\n\t{"eventName":"x"} ]\n\n',
        '{"data": [{"eventName": "caf\u00e9", "b": 1, "a": 1.0}]}'.encode(),
        b'{"data": {"event": "url_verification", "verification_code": "abc123"}}',
    ],
)
def test_a_file_arrives_byte_for_byte_and_signed(receiver: Receiver, tmp_path: Path, body: bytes) -> None:
    file = tmp_path / "body.json"
    file.write_bytes(body)
    result = send("--url", receiver.url, file)
    assert (result.code, result.err) == (0, "")
    assert result.out == f"200 OK\n{receiver.answer.decode()}\n"
    (received,) = receiver.requests
    assert received.body == body
    assert received.path == "/api/v1/data/events/receiver/statsig"
    assert received.headers["Content-Type"] == "application/json"
    check_signed(received)


def test_the_standard_input_arrives_byte_for_byte(receiver: Receiver) -> None:
    body = b'\xef\xbb\xbf{"data": []}\r\n'
    assert send("--url", receiver.url, "-", stdin=body).code == 0
    assert receiver.requests[0].body == body
    check_signed(receiver.requests[0])


@pytest.mark.parametrize(
    ("body", "hint"),
    [
        (b"not JSON\n", "the body is not JSON"),
        (b"\xff{}", "the body is not UTF-8 at byte 0"),
        (b'{"hello": "world"}', "neither a batch of events nor one event"),
        (b"", "the body is not JSON"),
    ],
)
def test_a_bad_body_is_sent_too_with_a_hint(receiver: Receiver, body: bytes, hint: str) -> None:
    result = send("--url", receiver.url, "-", stdin=body)
    assert hint in result.err
    assert result.code == 0
    assert receiver.requests[0].body == body


@pytest.mark.parametrize("name", SAMPLES)
def test_each_sample_is_a_body_that_a_receiver_reads(name: str) -> None:
    payload = webhook.parse(SAMPLES[name].build(NOW_MS))
    assert payload.count > 0
    for item in payload.changes:
        assert isinstance(item.value, dict)
        event = ChangeEvent.from_item(item.value)
        assert NOW_MS - 600_000 <= event.happened_at <= NOW_MS
        assert not event.left_out
    assert (payload.count > payload.ignored) == (name != "exposures")


def test_a_sample_made_twice_is_two_changes() -> None:
    def uids(name: str) -> set[str]:
        payload = webhook.parse(SAMPLES[name].build(NOW_MS))
        return {uid(item.value) for item in payload.changes if isinstance(item.value, dict)}

    for name in SAMPLES:
        assert uids(name).isdisjoint(uids(name))


@pytest.mark.parametrize(("arguments", "action"), [((), "updated"), (("--sample", "archived"), "archived")])
def test_a_sample_is_sent_signed(receiver: Receiver, arguments: Sequence[str], action: str) -> None:
    before_ms = time.time_ns() // 1_000_000
    assert send("--url", receiver.url, *arguments).code == 0
    check_signed(receiver.requests[0])
    (event,) = json.loads(receiver.requests[0].body)["data"]
    assert (event["metadata"]["name"], event["metadata"]["action"]) == ("sample_gate", action)
    assert before_ms <= event["timestamp"] <= time.time_ns() // 1_000_000


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_is_printed_and_not_sent(name: str) -> None:
    """Neither a receiver nor a secret is needed, and `explain` reads what is printed."""
    printed = CliRunner().invoke(main, ["send", "--print", "--sample", name], env={"STATSIG_SIGNING_SECRET": None})
    assert printed.exit_code == 0, printed.output
    built = json.loads(SAMPLES[name].build(NOW_MS))
    assert webhook.parse(printed.stdout.encode()).count == webhook.parse(json.dumps(built).encode()).count
    assert "\n  " in printed.stdout


def test_the_page_about_webhooks_shows_a_sample() -> None:
    page = (Path(__file__).parents[3] / "docs" / "webhook.md").read_text()
    shown, verification = (json.loads(text) for text in re.findall(r"```json\n(.*?)```", page, re.DOTALL))
    printed = json.loads(SAMPLES["gate"].build(NOW_MS))
    for body in (shown, printed):
        del body["data"][0]["timestamp"]
    about = printed["data"][0]["metadata"]
    about["description"], line, _ = about["description"].rpartition("\n    - Sample ")
    assert line
    assert shown == printed
    assert webhook.parse_url_verification(json.dumps(verification).encode()) == "abc123"


def test_by_default_the_sample_of_a_gate_is_printed() -> None:
    (event,) = json.loads(CliRunner().invoke(main, ["send", "--print"]).stdout)["data"]
    assert event["metadata"]["name"] == "sample_gate"


def test_the_samples_are_listed() -> None:
    result = send("--list-samples", secret=None)
    assert result.code == 0
    assert [line.split()[0] for line in result.out.splitlines()] == list(SAMPLES)


@pytest.mark.parametrize(
    ("status", "headers", "hint"),
    [
        (400, {}, "is not a Statsig webhook"),
        (401, {}, "another signing secret"),
        (404, {}, "/api/v1/data/events/receiver/statsig"),
        (503, {"Retry-After": "7"}, "Retry-After is 7"),
        (202, {}, ""),
        (599, {}, ""),
    ],
)
def test_anything_but_200_is_exit_code_1(status: int, headers: dict[str, str], hint: str) -> None:
    with Receiver(status=status, headers=headers, answer=b'{"title": "no"}') as receiver:
        result = send("--url", receiver.url)
    assert result.code == 1
    assert result.out.startswith(f"{status}")
    assert '{"title": "no"}' in result.out
    assert hint in result.err


def test_redirects_are_not_followed(receiver: Receiver) -> None:
    with Receiver(status=307, headers={"Location": receiver.url}) as redirecting:
        result = send("--url", redirecting.url)
    assert result.code == 1
    assert receiver.url in result.err
    assert receiver.requests == []


@pytest.mark.slow
def test_as_a_process_it_is_the_same(receiver: Receiver) -> None:
    body = b'{"data": [{"eventName": "statsig::config_change"}]}'
    told = [sender("-", "--url", receiver.url, stdin=body) for sender in (send, send_as_process)]
    assert told[0] == told[1]
    assert told[0].code == 0
    assert [received.body for received in receiver.requests] == [body, body]
    check_signed(receiver.requests[1])
    wrong = send_as_process("--url", receiver.url, "--sample", "nothing")
    assert (wrong.code, "There are" in wrong.err, wrong.out) == (2, True, "")


def test_nobody_listens_is_exit_code_2() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        result = send("--url", f"http://127.0.0.1:{free.getsockname()[1]}/")
    assert result.code == 2
    assert "Connection refused" in result.err
    assert len(result.err.splitlines()) == 1


def test_a_silent_server_is_exit_code_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        result = send("--url", f"http://127.0.0.1:{silent.getsockname()[1]}/", "--timeout", "0.3")
    assert result.code == 2
    assert "did not answer within 0.3 s" in result.err
    assert len(result.err.splitlines()) == 1


def test_an_answer_that_drips_in_is_exit_code_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
                while not stop.wait(0.05):
                    try:
                        connection.sendall(b".")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        result = send("--url", f"http://127.0.0.1:{server.getsockname()[1]}/", "--timeout", "0.5")
        stop.set()
        thread.join()
    assert result.code == 2
    assert "did not answer within 0.5 s" in result.err


@pytest.mark.parametrize("garbage", [b"", b"220 mail.example.com ESMTP\r\n"])
def test_a_server_of_another_protocol_is_exit_code_2(garbage: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(garbage)

        thread = threading.Thread(target=answer)
        thread.start()
        result = send("--url", f"http://127.0.0.1:{server.getsockname()[1]}/")
        thread.join()
    assert result.code == 2
    assert "did not answer: " in result.err
    assert len(result.err.splitlines()) == 1


def test_the_url_verification_passes_where_the_code_is_echoed() -> None:
    with Receiver(echo=True) as receiver:
        result = send("--url", receiver.url, "--verify-url", secret=None)
    assert result.code == 0
    assert "would register" in result.err
    (received,) = receiver.requests
    assert webhook.parse_url_verification(received.body) is not None
    assert not any(name.lower().startswith("x-statsig") for name in received.headers)


@pytest.mark.parametrize(
    "answer", [b'{"verification_code": "another"}', b'{"accepted": 0}', b"verification_code", b"[]", b""]
)
def test_the_url_verification_fails_where_the_code_is_not_echoed(answer: bytes) -> None:
    with Receiver(answer=answer) as receiver:
        result = send("--url", receiver.url, "--verify-url", secret=None)
    assert result.code == 1
    assert "not echoed" in result.err


def test_the_url_verification_fails_where_the_echo_is_no_200() -> None:
    with Receiver(echo=True, status=201) as receiver:
        assert send("--url", receiver.url, "--verify-url", secret=None).code == 1


@pytest.mark.parametrize("content", [b"webhook-from-a-file", b"webhook-from-a-file\n", b"webhook-from-a-file\r\n"])
def test_the_secret_comes_from_a_file_before_the_variable(receiver: Receiver, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content)
    assert send("--url", receiver.url, "--secret-file", file).code == 0
    check_signed(receiver.requests[0], "webhook-from-a-file")


@pytest.mark.parametrize("secret", [None, ""])
def test_a_missing_secret_says_what_to_do(receiver: Receiver, secret: str | None) -> None:
    result = send("--url", receiver.url, secret=secret)
    assert result.code == 2
    assert "STATSIG_SIGNING_SECRET" in result.err
    assert "--secret-file" in result.err
    assert receiver.requests == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b" x", "white space"),
        (b"x\n\n", "white space"),
        (b'"x"\n', "quotation mark"),
        (b"webhook-\n", "only the beginning"),
        (b"\xff", "not valid UTF-8"),
    ],
)
def test_an_unusable_secret_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content)
    with pytest.raises(SendError, match=message):
        read_secret(file, {})
    with pytest.raises(SendError, match="can't be read"):
        read_secret(tmp_path / "none", {})


def test_a_variable_that_is_no_utf_8_is_refused() -> None:
    with pytest.raises(SendError, match="not valid UTF-8"):
        read_secret(None, {"STATSIG_SIGNING_SECRET": "webhook-\udcff"})


def test_the_secret_is_no_argument_and_never_shown(receiver: Receiver) -> None:
    result = send("--url", receiver.url, "--secret", SECRET, secret=None)
    assert result.code == 2
    assert "No such option" in result.err
    with Receiver(status=401) as refusing:
        refused = send("--url", refusing.url)
    assert SECRET not in refused.out + refused.err
    assert receiver.requests == []


@looped(
    ("arguments", "message"),
    [
        (("--sample", "nothing"), "There are: gate,"),
        (("--sample", "gate", "-"), "exclude each other"),
        (("--sample", "gate", "--verify-url"), "exclude each other"),
        (("does-not-exist.json",), "can't be read"),
        (("--print", "-"), "leave FILE and --verify-url out"),
        (("--print", "--verify-url"), "leave FILE and --verify-url out"),
        (("--ca-file", "does-not-exist.pem", "--url", "https://127.0.0.1:1/"), "CA file can't be read"),
        (("--url", "ftp://127.0.0.1/"), "must begin with http"),
        (("--url", "127.0.0.1:8080"), "must begin with http"),
        (("--url", "http://user@127.0.0.1/"), "a user or a password"),
        (("--url", "http://127.0.0.1:0/"), "port 0"),
        (("--url", "http://[::1/"), "can't be read"),
    ],
)
def test_what_cannot_be_carried_out_is_exit_code_2(arguments: Sequence[str], message: str) -> None:
    result = send("--url", "http://127.0.0.1:1/", *arguments)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err


def test_https_takes_an_authority_from_a_file(tmp_path: Path) -> None:
    authority = Authority()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("127.0.0.1").write(tmp_path))
    with Receiver(tls=context) as receiver:
        trusted = send("--url", receiver.url, "--ca-file", authority.write(tmp_path))
        untrusted = send("--url", receiver.url)
    assert trusted.code == 0
    check_signed(receiver.requests[0])
    assert untrusted.code == 2
    assert "no TLS connection to 127.0.0.1" in untrusted.err
    assert "--ca-file" in untrusted.err
    assert len(receiver.requests) == 1


def test_what_a_server_says_does_no_harm_to_a_terminal() -> None:
    answer = Answer(200, b"one\x1b[2J\ntwo\r\n\xff\x07", retry_after="1\x1b")
    assert answer.text == "one\\x1b[2J\ntwo\n\ufffd\\x07"
    assert "\x1b" not in (Answer(503, b"", retry_after="1\x1b").hint or "")
    assert "\x1b" not in (Answer(302, b"", location="http://\x1b").hint or "")


def test_only_a_bounded_part_of_an_answer_is_read() -> None:
    with Receiver(answer=b"x" * (1 << 20)) as receiver:
        result = send("--url", receiver.url)
    assert result.code == 0
    assert len(result.out) < 100_000


def test_the_help_loads_no_network_library() -> None:
    program = (
        "import sys\nfrom statsig_otel.plugin.cli.main import main\n"
        "try: main(['send', '--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'urllib3', 'grpc', 'falcon', 'google.protobuf'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.endswith("[]\n")
    assert "STATSIG_SIGNING_SECRET" in done.stdout
    assert "\n    2  the receiver did not answer" in done.stdout
