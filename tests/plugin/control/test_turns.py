"""The turns and threads of commands: whoever gives one, the next one waits, and a shutdown too."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from statsig_otel.plugin.control import socket
from statsig_otel.plugin.control.socket import ControlError, ControlServer, call
from tests.plugin.control.test_socket import HANDLERS, WAIT, serving, talk
from tests.waiting import wait_until


def test_a_command_that_did_not_come_by_the_socket_takes_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, begun, go_on = tmp_path / "control.sock", threading.Event(), threading.Event()

    def hold(arguments: dict[str, Any]) -> Any:
        begun.set()
        return go_on.wait(WAIT)

    server = ControlServer(path, {**HANDLERS, "hold": hold})
    server.start()
    with ThreadPoolExecutor(3) as pool:
        held = pool.submit(server.carry_out, "hold", {})
        assert begun.wait(WAIT)
        monkeypatch.setattr(socket, "COMMAND_TIMEOUT", 0.01)
        with pytest.raises(ControlError, match="another command takes too long, and nothing was done"):
            server.carry_out("echo", {})
        assert b"another command takes too long" in talk(path, b'{"command": "echo"}\n')
        monkeypatch.undo()
        waiting = pool.submit(server.carry_out, "echo", {"n": 1})
        ending = pool.submit(server.shutdown, WAIT)
        wait_until(lambda: not path.exists())
        assert not ending.done()
        go_on.set()
        assert held.result(WAIT) is True
        ending.result(WAIT)
        with pytest.raises(ControlError, match="shutting down, and nothing was done"):
            waiting.result(WAIT)
    for command, refusal in (("refuse", "because"), ("fail", "log says why"), ("other", "knows no command")):
        with pytest.raises(ControlError, match=refusal):
            ControlServer(path, HANDLERS).carry_out(command, {})


def test_a_command_for_which_no_thread_starts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user or a container has as many threads as it may have."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with serving(tmp_path / "control.sock") as path:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            for _ in range(100):  # and no place of a client is lost
                with pytest.raises(ControlError, match="no thread for the command, and nothing was done"):
                    call(path, "echo")
        assert call(path, "echo", n=1) == {"n": 1}
