"""The control socket, by which a command reaches a running service, and the turns that all commands take.

A Unix socket in the queue's directory, for its owner alone. One JSON line is a request, one JSON line its answer:

    {"command": "queue resume", "arguments": {"exporter": "otlp_grpc"}}
    {"result": {"state": "blocked"}}    or    {"error": "why not"}

Each connection has a thread of its own, so that a silent client holds nobody up. Commands are carried out one after
another, also those of the live page.
"""

import errno
import json
import logging
import os
import shutil
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

from statsig_otel._process import OwnerProcess
from statsig_otel._times import COMMAND_TIMEOUT
from statsig_otel.exporters.terminal import printable

_logger: Final = logging.getLogger(__name__)

Handler: TypeAlias = Callable[[dict[str, Any]], Any]
"""Carries out one command: takes its arguments, returns a value for JSON, or raises `ControlError`."""

MAX_REQUEST: Final = 64 << 10
"""The most bytes of a request line."""

_MAX_ANSWER: Final = 16 << 20
_MAX_CLIENTS: Final = 16
_BACKLOG: Final = 1024  # a client that finds it full is refused at once
_PATIENCE: Final = 10.0
"""Seconds for which a client may be silent before it has sent its line."""

_GRACE: Final = 0.1
"""Seconds in which a client has to send its line while another one waits for its place."""

_WRITE_TIMEOUT: Final = 1.0
"""Seconds in which a client has to take its answer; nearly every answer fits into the socket's buffer."""

_ACCEPT_PAUSE: Final = 1.0  # seconds after a connection that could not be accepted
_PRIVATE_FILE: Final = 0o600
_PRIVATE_DIRECTORY: Final = 0o700

_LONGEST: Final = 103
"""The most bytes of a path in `sockaddr_un` (unix(7): 107; on macOS 103)."""


class ControlError(Exception):
    """The command was not carried out. The message is for the person who gave it."""


class ServiceNotRunningError(Exception):
    """No service listens on the control socket."""


class ControlServer:
    """Carries out the commands of a service, and listens for them on a socket. The constructor opens nothing.

    Args:
        path: The socket's path, in a directory that this process owns. A socket that a killed service left behind is
            replaced.
        handlers: The handler of each command. They are called one at a time, in threads of the server and of whoever
            calls `carry_out`. Another mapping may replace the attribute `handlers` at any time.
    """

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        self._path = path
        self.handlers = handlers
        self._server: _Server | None = None
        self._owner = OwnerProcess()
        self._one_at_a_time = threading.Lock()  # for commands
        self._command: threading.Thread | None = None  # the thread that carries one out
        self._finished = threading.Event()  # set while `shutdown` has to wait for no command
        self._finished.set()
        self._has_ended = False

    def carry_out(self, command: str, arguments: dict[str, Any]) -> Any:
        """Carry out a command that did not come by the socket. Waits until no other one is carried out.

        Raises:
            ControlError: It is refused, or another one takes too long.
        """
        with self._turn():
            return self._handled(command, arguments)

    def start(self) -> None:
        """Listen, and answer from now on. On a full disk the service has to deliver without it.

        Raises:
            OSError: The socket can't be made.
            RuntimeError: No thread can be started.
        """
        try:
            server = _Server(self._path, self._reply)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            _logger.error("%s: no command reaches this service until its next start: %s", self._path, error.strerror)
            return
        self._owner.enter()
        self._has_ended = False
        self._server = server  # before it runs, since a command may ask for the end at once
        try:
            threading.Thread(target=server.serve, name="control", daemon=True).start()
        except BaseException:
            self._server = None
            server.remove()
            server.server_close()
            raise

    def let_go(self) -> None:
        """Called by a handler that is about to stop the server, so that `shutdown` does not wait for that handler."""
        if threading.current_thread() is self._command:
            self._finished.set()

    def shutdown(self, timeout: float | None = None) -> None:
        """Finish the command that is being carried out, refuse all others, and remove the socket.

        Safe to call twice, and in a command.

        Args:
            timeout: Seconds for that command, which is left behind if it takes longer; None for no limit.
        """
        if self._has_ended or self._owner.is_forked:
            return  # a forked child owns nothing
        self._has_ended = True  # before the wait: a command whose turn comes now reads this, and does nothing
        if self._server is not None:
            self._server.stop()
            self._server.remove()
        self.let_go()
        if not self._finished.wait(timeout):
            _logger.warning("A command takes longer than the shutdown can wait; it is left behind")

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait until no other command is carried out, and let others wait for this one.

        Raises:
            ControlError: Another one takes too long.
        """
        if not self._one_at_a_time.acquire(timeout=COMMAND_TIMEOUT):
            raise ControlError("another command takes too long, and nothing was done: try again later")
        self._command = threading.current_thread()
        self._finished.clear()  # before `_has_ended` is read: a shutdown sets that first, and then waits for this
        try:
            yield
        finally:
            self._command = None
            self._finished.set()
            self._one_at_a_time.release()

    def _reply(self, line: bytes, connection: socket.socket) -> None:
        """Carry out the command of a line, and answer it, in its turn."""
        try:
            with self._turn():
                _send(connection, _answer(line, self._handled))
        except ControlError as error:
            _send(connection, {"error": str(error)})

    def _handled(self, command: str, arguments: dict[str, Any]) -> Any:
        """What the handler of a command returns.

        Raises:
            ControlError: It is refused.
        """
        if self._has_ended:
            raise ControlError("the service is shutting down, and nothing was done")
        handler = self.handlers.get(command)
        if handler is None:
            raise ControlError(f"the running service knows no command {command!r}: it may be of another version")
        try:
            result = handler(arguments)
            json.dumps(result)
        except ControlError:
            raise
        except Exception as error:
            _logger.exception("The command %s failed", command)
            raise ControlError(f"{command} failed; the service's log says why") from error
        return result


class _Server(socketserver.ThreadingUnixStreamServer):
    """One listening socket and its connections, each in a thread of its own. `reply` answers the line of one."""

    daemon_threads = True
    block_on_close = False
    timeout = 0.5  # seconds between checks whether the socket's file is in place, and `serve` has to end

    def __init__(self, path: Path, reply: Callable[[bytes, socket.socket], None]) -> None:
        self._path = path
        self._reply = reply
        self._is_unreachable = False  # another file is in the socket's place, it can't be made again, or can't be seen
        self._room = threading.Semaphore(_MAX_CLIENTS)
        self._lock = threading.Lock()  # over the connections that have not sent their line yet
        self._silent: set[socket.socket] = set()
        self._stopped = False
        super().__init__(str(path), socketserver.BaseRequestHandler, bind_and_activate=False)
        self.server_close()
        self.socket, self._file = _listen(path)

    def serve(self) -> None:
        """Accept connections until the end."""
        with self:
            while not self._stopped:
                self.handle_request()
                if not self._is_in_place():
                    self._listen_again()
                elif self._is_unreachable:
                    self._is_unreachable = False
                    _logger.info("%s is in its place again: commands reach this service", self._path)

    def stop(self) -> None:
        """End `serve` and the connections that have not sent their line yet."""
        with self._lock:
            self._stopped = True
            self._hang_up_on_silent()
            _hang_up(self.socket)

    def remove(self) -> None:
        """Remove the socket's file, if it is still this server's. Only after `stop`, or without `serve`."""
        if self._is_in_place():
            self._path.unlink(missing_ok=True)

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(self._path.lstat(), self._file)
        except OSError:
            return False

    def _listen_again(self) -> None:
        """Make the socket again if somebody deleted it. What is in its place may be another service's, so it stays."""
        with self._lock:
            if self._stopped:
                return
            why = f"somebody deleted or replaced {self._path}, and another file is in its place"
            try:
                self._path.lstat()
            except (FileNotFoundError, NotADirectoryError):
                before = self.socket
                try:
                    self.socket, self._file = _listen(self._path)
                except OSError as error:
                    reason = error.strerror or error
                    why = f"somebody deleted {self._path}, and it can't be made again now ({reason})"
                else:
                    before.close()
                    self._is_unreachable = False
                    _logger.error("Somebody deleted %s while it was in use. It is made again", self._path)
                    return
            except OSError as error:  # it may still be there, behind a directory that this process may not enter
                why = f"{self._path} is out of reach ({error.strerror or error})"
        if not self._is_unreachable:
            self._is_unreachable = True
            _logger.error("No command reaches this service: %s", why)

    def get_request(self) -> tuple[Any, Any]:
        try:
            return super().get_request()
        except OSError as error:
            if not self._stopped:
                _logger.warning("A control connection can't be accepted: %s", error)
                time.sleep(_ACCEPT_PAUSE)  # no descriptor is left: the next attempt would fail at once
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the connection's thread. If there is no room for it, all silent clients have to leave."""
        while not self._room.acquire(timeout=_GRACE):
            with self._lock:
                self._hang_up_on_silent()
        with self._lock:
            self._silent.add(request)
            if self._stopped:
                self._hang_up_on_silent()
        try:
            super().process_request(request, client_address)
        except RuntimeError as error:
            _logger.warning("A control connection can't be served: %s", error)
            _send(request, {"error": f"the service has no thread for the command, and nothing was done: {error}"})
            self.shutdown_request(request)

    def finish_request(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's signature
        """Read the connection's line, and have it answered."""
        with suppress(OSError), request.makefile("rb") as file:  # silent for too long, or gone
            request.settimeout(_PATIENCE)
            line = file.readline(MAX_REQUEST + 1)
            with self._lock:
                if request not in self._silent:
                    return  # it had to leave
                self._silent.remove(request)
            if line.endswith(b"\n") or len(line) > MAX_REQUEST:
                self._reply(line, request)

    def shutdown_request(self, request: Any) -> None:
        """Close the connection, and make room for another one."""
        with self._lock:
            self._silent.discard(request)
        super().shutdown_request(request)
        self._room.release()

    def _hang_up_on_silent(self) -> None:
        for connection in self._silent:
            _hang_up(connection)
        self._silent.clear()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's signature
        _logger.exception("A control connection failed")  # noqa: LOG004 - called where the exception is handled


def _hang_up(connection: socket.socket) -> None:
    """End a connection, or a listening socket, and wake the thread that waits for it.

    Closing it would wake nobody while a forked child has a copy.
    """
    with suppress(OSError):  # ended already
        connection.shutdown(socket.SHUT_RDWR)


def _send(connection: socket.socket, answer: Mapping[str, Any]) -> None:
    connection.settimeout(_WRITE_TIMEOUT)
    with suppress(OSError):  # the client has left, or does not read; the command is carried out
        connection.sendall(json.dumps(answer).encode() + b"\n")


def _answer(line: bytes, handled: Callable[[str, dict[str, Any]], Any]) -> dict[str, Any]:
    if not line.endswith(b"\n"):
        return {"error": f"the request is longer than {MAX_REQUEST} bytes"}
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        return {"error": "the request is not JSON"}
    command = request.get("command") if isinstance(request, dict) else None
    arguments = request.get("arguments", {}) if isinstance(request, dict) else None
    if not isinstance(command, str) or not isinstance(arguments, dict):
        return {"error": "the request is not an object with a command and its arguments"}
    try:
        return {"result": handled(command, arguments)}
    except ControlError as error:
        return {"error": str(error)}


def call(path: Path, command: str, **arguments: Any) -> Any:
    """Have the service at this socket carry out a command, and return its answer. The arguments are values for JSON.

    Raises:
        ServiceNotRunningError: There is no socket, or nobody listens on it.
        ControlError: The service refuses, or does not answer.
    """
    request = json.dumps({"command": command, "arguments": arguments}).encode() + b"\n"
    if len(request) > MAX_REQUEST:
        raise ControlError("the request is too long")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(COMMAND_TIMEOUT)
            with _address(path) as address:
                connection.connect(address)
            return _exchange(connection, request)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
        raise ServiceNotRunningError(f"no service listens on {path}") from error
    except TimeoutError as error:
        message = "the service did not answer in time: check what became of the command before you try again"
        raise ControlError(message) from error
    except OSError as error:
        raise ControlError(f"the service can't be reached on {path}: {error}") from error


def _exchange(connection: socket.socket, request: bytes) -> Any:
    line = b""
    with suppress(BrokenPipeError):  # it has answered without reading the line
        connection.sendall(request)
    with suppress(ConnectionResetError), connection.makefile("rb") as file:
        line = file.readline(_MAX_ANSWER)
    if not line.endswith(b"\n"):
        raise ControlError("the service ended without an answer: check what became of the command before you try again")
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or not answer.keys() & {"error", "result"}:
        raise ControlError("another program listens there")
    if "error" in answer:  # for a terminal, whoever listens there
        raise ControlError("\n".join(map(printable, str(answer["error"]).split("\n"))))
    return answer["result"]


def _listen(path: Path) -> tuple[socket.socket, os.stat_result]:
    """A listening socket at the path, to which only its owner ever has access, and the identity of its file.

    It is made in a private directory and then renamed, so that nobody else can connect before its mode is set, whatever
    the mode of the queue's directory. The rename replaces a socket that a killed service left behind.
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
        listener.listen(_BACKLOG)
        file = made.lstat()
        made.replace(path)
    except BaseException:
        listener.close()
        raise
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return listener, file


@contextmanager
def _address(path: Path) -> Iterator[str]:
    """A name for the path that fits into a socket's address. A long path is named through its open directory.

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
