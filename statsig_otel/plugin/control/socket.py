"""The control socket: how a command reaches a running service.

A Unix socket in the queue's directory, for its owner alone. One JSON line is a request, one JSON line its answer:

    {"command": "queue resume", "arguments": {"exporter": "otlp_grpc"}}
    {"result": {"state": "blocked"}}    or    {"error": "why not"}

One thread serves it. Requests are read side by side, so that a silent client holds nobody up, and carried out one after
another.
"""

import json
import logging
import os
import selectors
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

_logger: Final = logging.getLogger(__name__)

Handler: TypeAlias = Callable[[dict[str, Any]], Any]
"""Carries out one command: takes its arguments, returns what JSON can hold, or raises `ControlError`."""

MAX_REQUEST: Final = 64 << 10
"""Bytes of a request line at most."""

_MAX_ANSWER: Final = 16 << 20
_MAX_CLIENTS: Final = 16
_PATIENCE: Final = 5.0
"""Seconds in which a client has to send its line."""

_WRITE_TIMEOUT: Final = 1.0
"""Seconds in which a client has to take its answer; the socket's buffer holds nearly all of them."""

_CALL_TIMEOUT: Final = 60.0
"""Seconds that `call` waits for the answer: the service may have to wait for its disk."""

_ACCEPT_PAUSE: Final = 1.0
_CHUNK: Final = 16 << 10
_PRIVATE_FILE: Final = 0o600
_PRIVATE_DIRECTORY: Final = 0o700

_LONGEST: Final = 103
"""Bytes of a path in `sockaddr_un` (unix(7): 107; on macOS 103)."""


class ControlError(Exception):
    """The command was not carried out. The message is for the person who gave it."""


class ServiceNotRunningError(Exception):
    """No service listens on the control socket."""


class ControlServer:
    """Listens on the control socket of a directory that this process owns. The constructor opens nothing.

    Args:
        path: The socket's path. One that a killed service left behind is replaced.
        handlers: What each command does. They are called in the server's thread, one at a time.

    Attributes:
        handlers: As above; another mapping may take its place at any time.
    """

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        self._path = path
        self.handlers = handlers
        self._thread: threading.Thread | None = None
        self._stop: socket.socket | None = None  # its other end wakes the thread when this one is shut down
        self._stopped = threading.Event()
        self._pid = 0
        self._finished = threading.Event()  # nothing is to be waited for any more

    def start(self) -> None:
        """Listen, and answer from now on.

        Raises:
            OSError: The socket can't be made.
            RuntimeError: No thread can be started.
        """
        listener = _listen(self._path)
        stop, woken = socket.socketpair()
        self._stopped.clear()
        self._finished.clear()
        thread = threading.Thread(target=self._run, args=(listener, woken), name="control", daemon=True)
        self._stop, self._thread, self._pid = stop, thread, os.getpid()  # a command may ask for the end at once
        try:
            thread.start()
        except BaseException:
            self._stop = self._thread = None
            self._path.unlink(missing_ok=True)
            for one in (listener, stop, woken):
                one.close()
            raise

    def let_go(self) -> None:
        """Say, in a command, that it waits for the server's end: the end does not wait for it. No-op elsewhere."""
        if threading.current_thread() is self._thread:
            self._finished.set()

    def shutdown(self, timeout: float | None = None) -> None:
        """Finish the command that is being carried out, and remove the socket. Safe to call twice, and in a command.

        Args:
            timeout: Seconds for that command; one that takes longer goes on without being waited for. None for all.
        """
        stop, self._stop = self._stop, None
        if stop is None or self._pid != os.getpid():
            return  # never started; or a forked child, which owns nothing
        self._path.unlink(missing_ok=True)
        self._stopped.set()
        stop.shutdown(socket.SHUT_RDWR)  # to close it would wake nobody as long as a forked child has a copy
        stop.close()
        self.let_go()
        if not self._finished.wait(timeout):
            _logger.warning("A command takes longer than the shutdown can wait; it is left behind")

    def _run(self, listener: socket.socket, woken: socket.socket) -> None:
        try:
            self._serve(listener, woken)
        finally:
            self._finished.set()

    def _serve(self, listener: socket.socket, woken: socket.socket) -> None:
        clients: dict[socket.socket, _Client] = {}
        with selectors.DefaultSelector() as selector, listener, woken:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(woken, selectors.EVENT_READ)
            while not self._stopped.is_set():
                first = next(iter(clients.values()), None)  # they came in this order, so it is the first to run out
                ready = selector.select(None if first is None else max(first.deadline - time.monotonic(), 0))
                for key, _ in ready:
                    if key.fileobj is listener:
                        self._accept(listener, selector, clients)
                    elif isinstance(key.fileobj, socket.socket) and key.fileobj in clients:
                        self._read(clients[key.fileobj], selector, clients)
                now = time.monotonic()
                for client in [client for client in clients.values() if client.deadline <= now]:
                    _drop(client, selector, clients)
            for client in list(clients.values()):
                _drop(client, selector, clients)

    def _accept(
        self,
        listener: socket.socket,
        selector: selectors.BaseSelector,
        clients: "dict[socket.socket, _Client]",
    ) -> None:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return  # the client has left again
        except OSError as error:
            _logger.warning("A control connection can't be accepted: %s", error)
            self._stopped.wait(_ACCEPT_PAUSE)  # no descriptor left: it would come back at once
            return
        if len(clients) == _MAX_CLIENTS:
            _drop(next(iter(clients.values())), selector, clients)
        connection.setblocking(False)
        clients[connection] = _Client(connection)
        selector.register(connection, selectors.EVENT_READ)

    def _read(
        self, client: "_Client", selector: selectors.BaseSelector, clients: "dict[socket.socket, _Client]"
    ) -> None:
        """Take what a client sent; answer it once its line is there."""
        try:
            chunk = client.connection.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        client.received += chunk
        line, end, _ = client.received.partition(b"\n")
        answer = None
        if end and len(line) <= MAX_REQUEST:
            answer = self._answer(bytes(line))
        elif len(line) > MAX_REQUEST:
            answer = {"error": f"the request is longer than {MAX_REQUEST} bytes"}
        elif chunk:
            return
        if answer is not None:
            with suppress(OSError):  # the client has left, or does not read; what it asked for is done
                client.connection.settimeout(_WRITE_TIMEOUT)
                client.connection.sendall(json.dumps(answer).encode() + b"\n")
        _drop(client, selector, clients)

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return {"error": "the request is no JSON"}
        command = request.get("command") if isinstance(request, dict) else None
        arguments = request.get("arguments", {}) if isinstance(request, dict) else None
        if not isinstance(command, str) or not isinstance(arguments, dict):
            return {"error": "the request is no object with a command and its arguments"}
        handler = self.handlers.get(command)
        if handler is None:
            return {"error": f"the running service knows no command {command!r}: it may be of another version"}
        try:
            answer = {"result": handler(arguments)}
            json.dumps(answer)
        except ControlError as error:
            return {"error": str(error)}
        except Exception:
            _logger.exception("The command %s failed", command)
            return {"error": f"{command} failed; the service's log says why"}
        return answer


class _Client:
    """One connection, and what has come in on it."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.received = bytearray()
        self.deadline = time.monotonic() + _PATIENCE


def _drop(client: _Client, selector: selectors.BaseSelector, clients: dict[socket.socket, _Client]) -> None:
    del clients[client.connection]
    selector.unregister(client.connection)
    client.connection.close()


def call(path: Path, command: str, **arguments: Any) -> Any:
    """Have a running service carry out a command; what it answers.

    Args:
        path: The socket's path.
        command: The command.
        arguments: Its arguments, which JSON can hold.

    Raises:
        ServiceNotRunningError: There is no socket, or nobody listens on it.
        ControlError: The service refuses, or does not answer.
    """
    request = json.dumps({"command": command, "arguments": arguments}).encode() + b"\n"
    if len(request) > MAX_REQUEST:
        raise ControlError("the request is too long")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_CALL_TIMEOUT)
            with _address(path) as address:
                connection.connect(address)
            return _exchange(connection, request)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
        raise ServiceNotRunningError(f"no service listens on {path}") from error
    except TimeoutError as error:
        raise ControlError("the service did not answer in time: look what became of it before trying again") from error
    except OSError as error:
        raise ControlError(f"the service can't be reached on {path}: {error}") from error


def _exchange(connection: socket.socket, request: bytes) -> Any:
    try:
        connection.sendall(request)
        with connection.makefile("rb") as file:
            line = file.readline(_MAX_ANSWER)
    except (BrokenPipeError, ConnectionResetError):
        line = b""
    if not line.endswith(b"\n"):
        raise ControlError("the service left without an answer: look what became of it before trying again")
    answer = json.loads(line)
    if "error" in answer:
        raise ControlError(answer["error"])
    return answer["result"]


def _listen(path: Path) -> socket.socket:
    """A listening socket at the path, with access for its owner alone from its first moment.

    It is made in a private directory and renamed: whatever the queue's directory allows, nobody else can connect before
    the mode is set. The rename replaces what a killed service left behind.
    """
    private = path.with_name(f"{path.name}.new")
    shutil.rmtree(private, ignore_errors=True)  # of a service that was killed just here
    private.mkdir(mode=_PRIVATE_DIRECTORY)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made = private / path.name
        with _address(made) as address:
            listener.bind(address)
        made.chmod(_PRIVATE_FILE)
        listener.listen()
        listener.setblocking(False)
        made.replace(path)
    except BaseException:
        listener.close()
        raise
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return listener


@contextmanager
def _address(path: Path) -> Iterator[str]:
    """A name for the path that fits into a socket's address: a long one goes by way of its open directory.

    Raises:
        OSError: The path is too long, and the system has no /proc.
    """
    if len(os.fsencode(path)) <= _LONGEST:
        yield str(path)
        return
    if not Path("/proc/self/fd").is_dir():
        raise OSError(f"the path {path} is longer than a socket's may be, {_LONGEST} bytes: use a shorter directory")
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
