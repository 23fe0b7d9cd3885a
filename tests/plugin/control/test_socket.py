"""The control socket: real sockets, clients of every kind, and services that were killed."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from statsig_otel.plugin.control.socket import (
    MAX_REQUEST,
    ControlError,
    ControlServer,
    ServiceNotRunningError,
    call,
)

WAIT = 20.0


def echo(arguments: dict[str, Any]) -> Any:
    return arguments


def refuse(arguments: dict[str, Any]) -> Any:
    raise ControlError("because")


def fail(arguments: dict[str, Any]) -> Any:
    raise ZeroDivisionError("a mistake")


def unprintable(arguments: dict[str, Any]) -> Any:
    return object()


HANDLERS: Mapping[str, Callable[[dict[str, Any]], Any]] = {
    "echo": echo,
    "refuse": refuse,
    "fail": fail,
    "unprintable": unprintable,
}


@contextmanager
def serving(path: Path, handlers: Mapping[str, Callable[[dict[str, Any]], Any]] = HANDLERS) -> Iterator[Path]:
    server = ControlServer(path, handlers)
    server.start()
    try:
        yield path
    finally:
        server.shutdown()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Path]:
    with serving(tmp_path / "control.sock") as path:
        yield path


@contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(WAIT)
        client.connect(str(path))
        yield client


def talk(path: Path, sent: bytes) -> bytes:
    """What comes back for some bytes, up to the end."""
    with connected(path) as client:
        client.sendall(sent)
        with client.makefile("rb") as file:
            return file.read()


def test_a_command_is_answered(server: Path) -> None:
    assert call(server, "echo", exporter="otlp", n=[1, None, "ü\n"]) == {"exporter": "otlp", "n": [1, None, "ü\n"]}
    assert call(server, "echo") == {}


def test_a_refusal_reaches_the_caller_with_its_reason(server: Path) -> None:
    with pytest.raises(ControlError, match="because"):
        call(server, "refuse")


@pytest.mark.parametrize("command", ["fail", "unprintable"])
def test_a_mistake_of_ours_is_logged_and_harms_nobody_else(
    server: Path, command: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ControlError, match="the service's log says why"):
        call(server, command)
    assert f"The command {command} failed" in caplog.text
    assert "Traceback" in caplog.text
    assert call(server, "echo", n=1) == {"n": 1}


def test_an_unknown_command_is_refused_with_a_hint(server: Path) -> None:
    with pytest.raises(ControlError, match="knows no command 'reload': it may be of another version"):
        call(server, "reload")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\x00\xff\xfe",
        b"no json",
        b"[]",
        b"null",
        b"7",
        b'{"command": 7}',
        b'{"arguments": {}}',
        b'{"command": "echo", "arguments": []}',
        b"[" * 60_000,
        b'{"command": "echo", "arguments": {"n": ' + b"9" * 5000 + b"}}",
    ],
    ids=lambda line: repr(line[:20]),
)
def test_garbage_is_answered_with_an_error(server: Path, line: bytes) -> None:
    assert list(json.loads(talk(server, line + b"\n"))) == ["error"]
    assert call(server, "echo", n=1) == {"n": 1}


def test_a_line_without_end_is_cut_off(server: Path) -> None:
    with connected(server) as client, pytest.raises((BrokenPipeError, ConnectionResetError)):
        client.sendall(b"x" * (64 << 20))  # far more than any buffer: it ends because the service has closed it
    assert call(server, "echo", n=1) == {"n": 1}


def test_a_line_of_exactly_the_bound_is_taken_and_a_longer_one_is_not(server: Path) -> None:
    frame = '{"command": "echo", "arguments": {"n": "%s"}}'
    longest = frame % ("x" * (MAX_REQUEST - len(frame) + 2))
    assert len(longest) == MAX_REQUEST
    assert "result" in json.loads(talk(server, longest.encode() + b"\n"))
    assert "longer than" in json.loads(talk(server, longest.encode() + b" \n"))["error"]
    with pytest.raises(ControlError, match="too long"):
        call(server, "echo", n="x" * MAX_REQUEST)


def test_a_request_may_come_byte_by_byte_and_the_client_may_half_close(server: Path) -> None:
    with connected(server) as client:
        for byte in b'{"command": "echo", "arguments": {"n": 1}}\n':
            client.sendall(bytes([byte]))
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as file:
            assert json.loads(file.read()) == {"result": {"n": 1}}


def test_silent_clients_hold_nobody_up(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statsig_otel.plugin.control.socket._GRACE", 0.01)  # else it takes a second
    silent = [socket.socket(socket.AF_UNIX) for _ in range(200)]
    try:
        for client in silent:
            client.connect(str(server))
            client.send(b'{"command"')
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.append(call(server, "echo", n=1)))
        thread.start()
        thread.join(WAIT)
        assert answers == [{"n": 1}]
    finally:
        for client in silent:
            client.close()


def test_no_more_than_sixteen_connections_are_open_at_a_time(server: Path) -> None:
    silent = [socket.socket(socket.AF_UNIX) for _ in range(16)]
    try:
        for client in silent:
            client.settimeout(WAIT)
            client.connect(str(server))
        assert call(server, "echo", n=1) == {"n": 1}
        assert [client.recv(1) for client in silent] == [b""] * 16  # they had to leave
    finally:
        for client in silent:
            client.close()


def test_clients_whose_commands_wait_do_not_have_to_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statsig_otel.plugin.control.socket._GRACE", WAIT)  # the machine may be busy
    go_on = threading.Event()

    def hold(arguments: dict[str, Any]) -> Any:
        go_on.wait(WAIT)
        return arguments["n"]

    answers: list[Any] = []
    with serving(tmp_path / "control.sock", {"hold": hold}) as path:
        threads = [
            threading.Thread(target=lambda n=number: answers.append(call(path, "hold", n=n))) for number in range(40)
        ]
        for thread in threads:
            thread.start()
        go_on.set()
        for thread in threads:
            thread.join(WAIT)
    assert sorted(answers) == list(range(40))


def test_a_silent_client_is_dropped_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statsig_otel.plugin.control.socket._PATIENCE", 0.05)
    with serving(tmp_path / "control.sock") as path, connected(path) as client:
        assert client.recv(1) == b""


def test_a_client_that_leaves_does_no_harm(server: Path) -> None:
    for sent in (b"", b'{"comm', b'{"command": "echo"}\n'):
        with connected(server) as client:
            client.sendall(sent)
    assert call(server, "echo", n=1) == {"n": 1}


def test_commands_are_carried_out_one_at_a_time(tmp_path: Path) -> None:
    inside, most = 0, 0

    def slow(arguments: dict[str, Any]) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.01)
        inside -= 1

    with serving(tmp_path / "control.sock", {"slow": slow}) as path:
        threads = [threading.Thread(target=call, args=(path, "slow")) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
    assert most == 1


def test_the_socket_is_for_its_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    before = os.umask(0)
    try:
        with serving(tmp_path / "control.sock") as path:
            mode = path.stat().st_mode
            assert stat.S_ISSOCK(mode)
            assert stat.S_IMODE(mode) == 0o600
            assert list(tmp_path.iterdir()) == [path]
    finally:
        os.umask(before)


def test_nothing_is_left_after_the_end_and_nobody_is_found(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    server = ControlServer(path, HANDLERS)
    assert not path.exists()
    server.shutdown()  # without a start
    server.start()
    server.shutdown()
    server.shutdown()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ServiceNotRunningError):
        call(path, "echo")
    server.start()
    assert call(path, "echo", n=1) == {"n": 1}
    server.shutdown()


def test_the_end_waits_for_no_client(tmp_path: Path) -> None:
    with serving(tmp_path / "control.sock") as path:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(WAIT)
        client.connect(str(path))
        call(path, "echo")  # so the one before is accepted
    with client:
        assert client.recv(1) == b""


def test_a_command_may_end_the_server_and_is_answered(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    handlers: dict[str, Callable[[dict[str, Any]], Any]] = {}
    server = ControlServer(path, handlers)

    def end(arguments: dict[str, Any]) -> Any:
        server.shutdown()
        return "ended"

    def end_elsewhere(arguments: dict[str, Any]) -> Any:
        server.let_go()
        ending = threading.Thread(target=server.shutdown)
        ending.start()
        ending.join(WAIT)
        return not ending.is_alive()

    handlers |= {"end": end, "end elsewhere": end_elsewhere}
    for command, answer in (("end", "ended"), ("end elsewhere", True)):
        server.start()
        assert call(path, command) == answer
        assert not path.exists()


def test_the_end_waits_for_a_command_but_not_for_ever(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    carried_out, go_on, finished = threading.Event(), threading.Event(), threading.Event()

    def hold(arguments: dict[str, Any]) -> Any:
        carried_out.set()
        go_on.wait(WAIT)
        finished.set()

    server = ControlServer(tmp_path / "control.sock", {"hold": hold})
    server.start()
    calling = threading.Thread(target=call, args=(tmp_path / "control.sock", "hold"))
    calling.start()
    assert carried_out.wait(WAIT)
    server.shutdown(0.0)
    assert not finished.is_set()
    assert "left behind" in caplog.text
    go_on.set()
    calling.join(WAIT)
    assert finished.is_set()


def test_where_no_thread_starts_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ControlServer(tmp_path / "control.sock", HANDLERS)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError, match="no thread"):
            server.start()
    server.shutdown()
    assert list(tmp_path.iterdir()) == []
    server.start()
    assert call(tmp_path / "control.sock", "echo") == {}
    server.shutdown()


def no_thread(_: threading.Thread) -> None:
    raise RuntimeError("no thread can be started")


def test_a_service_that_ends_without_an_answer_is_said(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def leave() -> None:
            connection, _ = listener.accept()
            connection.recv(1 << 16)
            connection.close()

        thread = threading.Thread(target=leave)
        thread.start()
        with pytest.raises(ControlError, match="without an answer"):
            call(path, "echo")
        thread.join(WAIT)


def test_a_service_that_does_not_answer_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("statsig_otel.plugin.control.socket.COMMAND_TIMEOUT", 0.05)
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(ControlError, match="did not answer in time"):
            call(path, "echo")


@pytest.mark.parametrize("left", ["socket", "file", "half made"])
def test_what_a_killed_service_left_is_replaced(tmp_path: Path, left: str) -> None:
    path = tmp_path / "control.sock"
    if left == "socket":
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
        with pytest.raises(ServiceNotRunningError):
            call(path, "echo")
    elif left == "file":
        path.write_text("")
    else:
        (tmp_path / "control.sock.new").mkdir()
        (tmp_path / "control.sock.new" / "control.sock").write_text("")
    with serving(path):
        assert call(path, "echo", n=1) == {"n": 1}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [90, 103, 104, 107, 108, 200])
def test_a_path_of_any_length_works(tmp_path: Path, length: int) -> None:
    base = tmp_path
    missing = length - len(str(base / "control.sock")) - 1
    if missing <= 0:
        pytest.skip("the temporary directory is longer by itself")
    folder = base / ("d" * missing)
    folder.mkdir()
    path = folder / "control.sock"
    assert len(str(path)) == length
    with serving(path):
        assert call(path, "echo", n=1) == {"n": 1}
    assert not list(folder.iterdir())
    with pytest.raises(ServiceNotRunningError):
        call(path, "echo")


def test_a_directory_that_is_not_there_is_no_service_and_no_place_to_listen(tmp_path: Path) -> None:
    path = tmp_path / "none" / "control.sock"
    with pytest.raises(ServiceNotRunningError):
        call(path, "echo")
    with pytest.raises(OSError, match="none"):
        ControlServer(path, HANDLERS).start()


def test_a_forked_child_takes_nothing_from_its_parent(tmp_path: Path) -> None:
    """A child that ends in order does not remove the parent's socket."""
    script = """
import os, sys
from pathlib import Path
from statsig_otel.plugin.control.socket import ControlServer, call
path = Path(sys.argv[1])
server = ControlServer(path, {"echo": lambda arguments: arguments})
server.start()
child = os.fork()
if child == 0:
    server.shutdown()
    os._exit(0)
os.waitpid(child, 0)
assert call(path, "echo", n=1) == {"n": 1}
server.shutdown()
"""
    arguments = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, str(tmp_path / "control.sock")]
    subprocess.run(arguments, check=True, timeout=WAIT)


def test_a_killed_service_is_found_to_be_gone(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    script = """
import sys, time
from pathlib import Path
from statsig_otel.plugin.control.socket import ControlServer
ControlServer(Path(sys.argv[1]), {"echo": lambda arguments: arguments}).start()
print("up", flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert call(path, "echo", n=1) == {"n": 1}
        process.send_signal(signal.SIGKILL)
        process.wait(WAIT)
    assert path.exists()
    with pytest.raises(ServiceNotRunningError):
        call(path, "echo")
    with serving(path):
        assert call(path, "echo", n=2) == {"n": 2}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b'{"error": "no\\u001b[2J\\n  hint: x"}\n', "no\\x1b[2J\n  hint: x"),
        (b"garbage\n", "another program listens there"),
        (b"[" * 100_000 + b"\n", "another program listens there"),
        (b"[]\n", "another program listens there"),
        (b"{}\n", "another program listens there"),
        (b"", "the service ended without an answer: check what became of the command before you try again"),
    ],
)
def test_whoever_listens_can_harm_neither_the_terminal_nor_the_command(
    tmp_path: Path, answer: bytes, message: str
) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.makefile("rb").readline()
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(ControlError) as error:
            call(path, "queue")
        thread.join(WAIT)
    assert str(error.value) == message
