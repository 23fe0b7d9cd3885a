"""The control socket of a running service: whatever line it is sent, it answers with one line of JSON, and goes on."""

import json
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from typing import Any, Final, NoReturn

from statsig_otel.exporters import Blocked, Outcome
from statsig_otel.exporters.queue import schema
from statsig_otel.plugin import Service
from statsig_otel.plugin.control.socket import MAX_REQUEST, call
from statsig_otel.plugin.webhook.body import CONFIG_CHANGE
from tests.fuzz.targets import Check, Mutate, is_chosen
from tests.fuzz.trees import change
from tests.plugin.http_client import exchange
from tests.plugin.services import Keeper, address_of, service, signed_request

LONGEST: Final = 512
SHARE: Final = 16
"""Of so many inputs one goes through the socket and its threads, which takes several times as long."""
ENOUGH: Final = 1_000_000
TOKENS: Final = (
    b'{"command": "', b'", "arguments": {', b"}}\n", b'"queue"', b"queue resume", b"queue skip", b"queue remove",
    b"dead-letters replay", b"dead-letters drop", b'"exporter": "', b'"selection": {', b'"ids": [', b'"receiver": "',
    b'"kind": "', b'"item"', b'"body"', b'"record"', b'"batch"', b'"damaged"', b'"after": ', b'"upto": ',
    b'"yes": true', b'"count": ', b'"older_than": ',
    b'"to": "', b"1e308", b"stuck", b"keeper", b"statsig", b"9223372036854775808", b"-1", b"1e999", b"NaN", b"\\ud800",
)  # fmt: skip

WAIT: Final = 20.0
ITEMS: Final = 3
"""Dead letters, and records that wait for the exporter that is stuck, below which there are too few."""

NEW: Final = 20
"""How many of them are made at once."""

MOST: Final = 200
"""Dead letters after which they are dropped and made anew."""


class Stuck:
    """An exporter whose backend refuses its key."""

    def start(self) -> None:
        pass

    def send(self, payload: bytes, count: int, timeout: float) -> Outcome:
        return Blocked("401")

    def shutdown(self) -> None:
        pass


def seeds() -> Iterator[bytes]:
    """Each command, with the arguments that it takes."""
    for command in ("queue", "queue resume", "queue skip", "queue remove"):
        for exporter in ("stuck", "keeper", "gone"):
            yield line(command, exporter=exporter)
    yield line("queue remove", exporter="gone", yes=True)
    yield line("queue skip", exporter="stuck", count=2, older_than=1.5)
    yield line("dead-letters replay", selection={"kind": "record"}, to="keeper")
    for command in ("dead-letters replay", "dead-letters drop"):
        for selection in ({}, {"ids": [1, 2]}, {"exporter": "stuck"}, {"receiver": "statsig"}, {"kind": "item"}):
            yield line(command, selection=selection, after=0, upto=2)
    yield from (b"\n", b"{}\n", b'{"command": 1}\n', b'{"command": "queue"}')


def line(command: str, **arguments: object) -> bytes:
    return json.dumps({"command": command, "arguments": arguments}).encode() + b"\n"


VALUES: Final[tuple[Any, ...]] = (
    None, True, False, 0, 1, 2, -1, 1.5, 1e308, 2**63 - 1, 2**63, 2**64, 10**30, "", "stuck", "keeper", "gone",
    "statsig", "x\0", "\ud800", "item", "body", "record", "batch", "damaged", [], {}, [1, 2], [2**63], [None],
    {"kind": "item"}, "queue", "queue resume", "queue skip", "queue remove", "dead-letters replay", "dead-letters drop",
)  # fmt: skip
KEYS: Final[Mapping[str, Sequence[tuple[str, Any]]]] = {
    "": [("command", "queue"), ("arguments", {})],
    "arguments": [
        (key, None) for key in ("exporter", "yes", "count", "older_than", "selection", "after", "upto", "to")
    ],
    "selection": [(key, None) for key in ("ids", "exporter", "receiver", "kind")],
}


def mutated(data: bytes, random: Random, mutate: Mutate) -> bytes:
    """A command with other arguments, or any bytes."""
    try:
        document = json.loads(data) if random.randrange(8) else None
    except (ValueError, RecursionError):
        document = None
    if document is None:
        return mutate(data)
    change(document, random, mutate, keys_below=lambda name: KEYS.get(name) or KEYS["arguments"], values=VALUES)
    return json.dumps(document).encode() + b"\n"


@contextmanager
def checking() -> Iterator[Check]:
    with (
        tempfile.TemporaryDirectory() as directory,
        service(Path(directory), {"stuck": Stuck(), "keeper": Keeper()}) as running,
    ):
        stock = Stock(running, Path(directory))
        stock.fill()

        def check(data: bytes) -> None:
            answer = answer_to(stock.socket, data) if is_chosen(data, SHARE) else stock.answer_here(data)
            check_answer(data, answer)
            if answer.startswith(b'{"result"'):
                stock.fill()

        with closing(stock):
            yield check


class Stock:
    """What the commands find: dead letters, and records that wait."""

    def __init__(self, running: Service, directory: Path) -> None:
        self.socket = directory / "control.sock"
        self._database = schema.connect_reading(directory / "queue.db")
        self._service = running
        self._posted = 0

    def close(self) -> None:
        self._database.close()

    def answer_here(self, data: bytes) -> bytes:
        """All that comes back for some bytes, without waiting for another thread to read them."""
        assembly = self._service._assembly
        assert assembly._control is not None
        server = assembly._control._server
        assert server is not None
        ours, theirs = socket.socketpair()
        with ours:
            ours.sendall(data)
            ours.shutdown(socket.SHUT_WR)
            with theirs:
                with server._lock:
                    server._silent.add(theirs)
                server.finish_request(theirs, "")
                server._silent.discard(theirs)  # a line that has not ended is not answered
            return all_of(ours)

    def fill(self) -> None:
        """Make anew what a command has taken away."""
        dead_letters, waiting = self._counts()
        if dead_letters > MOST:
            call(self.socket, "dead-letters drop", selection={})
        if dead_letters < ITEMS or dead_letters > MOST:
            self._post([{"eventName": CONFIG_CHANGE}] * NEW)
        if waiting < ITEMS:
            self._post(
                [
                    {"eventName": CONFIG_CHANGE, "timestamp": at, "metadata": {"type": "Gate", "name": "a"}}
                    for at in range(self._posted + 1, self._posted + 1 + NEW)
                ]
            )
            self._posted += NEW

    def _post(self, items: Sequence[object]) -> None:
        body = json.dumps({"data": items}).encode()
        assert exchange(address_of(self._service), signed_request(body)).status == 200

    def _counts(self) -> tuple[int, int]:
        (dead_letters,) = self._database.execute("SELECT count(*) FROM dead_letters").fetchone()
        (waiting,) = self._database.execute("SELECT waiting FROM exporters WHERE name = 'stuck'").fetchone()
        return dead_letters, waiting


def answer_to(path: Path, data: bytes) -> bytes:
    """All that comes back for some bytes."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(WAIT)
        client.connect(str(path))
        try:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has answered the first line
        return all_of(client)


def all_of(client: socket.socket) -> bytes:
    received = b""
    try:
        while chunk := client.recv(1 << 16):
            received += chunk
    except ConnectionResetError:
        pass  # it has not read what stood behind the first line
    return received


def check_answer(data: bytes, received: bytes) -> None:
    if b"\n" not in data[: MAX_REQUEST + 1] and len(data) <= MAX_REQUEST:
        assert received == b"", "a line that has not ended is answered"
        return
    assert received.endswith(b"\n")
    assert received.count(b"\n") == 1
    answer = json.loads(received, parse_constant=_refuse)
    assert isinstance(answer, dict)
    assert set(answer) in ({"result"}, {"error"})
    assert "the service's log says why" not in str(answer.get("error")), "a command has failed with a traceback"


def _refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is not JSON")
