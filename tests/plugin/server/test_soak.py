"""The soak of the HTTP server's shutdown: real processes that end under load."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.plugin.server.echo import LONG, POST, post

_CHILD = Path(__file__).with_name("_server_child.py")


class Load:
    """Clients of one round: some that post without a pause, and some that never finish what they send."""

    def __init__(self, port: int, number: int) -> None:
        self._address = ("127.0.0.1", port)
        self._stack = contextlib.ExitStack()
        self.answers = 0
        self._lock = threading.Lock()
        self.broken: list[str] = []
        self._threads = [threading.Thread(target=self._post_on, args=(index,)) for index in range(6)]
        for thread in self._threads:
            thread.start()
        # Each round leaves other things unfinished.
        unfinished = [b"", b"POST / HT", b"POST / HTTP/1.1\r\nhost: t", POST % (b"", 99, b"part")]
        for index in range(1 + number % 4):
            connection = self._stack.enter_context(socket.create_connection(self._address, timeout=LONG))
            connection.sendall(unfinished[(number + index) % 4])

    def _post_on(self, index: int) -> None:
        body = bytes([65 + index]) * (1000 * (index + 1))
        """Converse until nobody listens any more. A reset is no fault, where no answer had begun."""
        while True:
            try:
                connection = socket.create_connection(self._address, timeout=LONG)
            except ConnectionError:
                return
            with connection, contextlib.suppress(ConnectionError):
                self._converse(connection, body)

    def _converse(self, connection: socket.socket, body: bytes) -> None:
        while True:
            try:
                answer = post(connection, b"", body)
            except EOFError as error:
                if error.args:
                    self.broken.append(f"cut off after {error.args[0]!r}")
                return
            with self._lock:
                self.answers += 1
                if answer != (200, body):
                    self.broken.append(f"{answer[0]} and {len(answer[1])} bytes")

    def finish(self) -> None:
        for thread in self._threads:
            thread.join(timeout=LONG)
        assert not any(thread.is_alive() for thread in self._threads)
        self._stack.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_services_under_load_end_by_sigterm_and_each_answer_arrives() -> None:
    """Exit code 0, no panic, no hang, the port free at once, and each 200 that was given reaches its client whole."""
    port = 0
    answers = 0
    for number in range(100):
        with subprocess.Popen(
            [sys.executable, str(_CHILD), str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as child:
            try:
                assert child.stdout is not None
                line = child.stdout.readline()
                assert line, f"round {number}: did not start: {child.communicate(timeout=LONG)[1]}"
                port = int(line)  # each later round takes the same one
                load = Load(port, number)
                time.sleep(0.02 + 0.003 * (number % 50))
                child.send_signal(signal.SIGTERM)
                out, err = child.communicate(timeout=LONG)
                load.finish()
            finally:
                child.kill()  # of no effect on one that has ended
        assert child.returncode == 0, f"round {number}: {err}"
        assert err == "", f"round {number}"
        assert load.broken == [], f"round {number}"
        assert load.answers == int(out), f"round {number}: answers arrived, answers given"
        answers += load.answers
    assert answers > 100
