"""Ports for servers that are started later."""

import contextlib
import random
import socket
from typing import Final

_PORTS: Final = random.Random().sample(range(15_000, 32_000), 17_000)
"""Below those that a system gives to outgoing connections, and to servers that take any (Linux: from 32,768 on).
Otherwise one of thousands of connections of another test can have the port when the server comes."""


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens, another one for each call."""
    while True:
        port = _PORTS.pop()
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
