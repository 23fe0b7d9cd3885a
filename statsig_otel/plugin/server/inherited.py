"""Takes the listening sockets that a supervisor passes to the process: socket activation (sd_listen_fds(3)).

The supervisor keeps the sockets while the service restarts, so clients wait in the backlog instead of being refused.
"""

import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_logger: Final = logging.getLogger(__name__)

FIRST: Final = 3
"""The descriptor of the first socket, after standard input, output and error."""


@dataclass(frozen=True, slots=True)
class InheritedSocket:
    """A listening TCP socket, and the name that the supervisor gave it."""

    name: str
    socket: socket.socket


def inherited_sockets(environ: Mapping[str, str], *, first: int = FIRST) -> list[InheritedSocket]:
    """The sockets that LISTEN_FDS counts and LISTEN_FDNAMES names.

    Those for another process, which LISTEN_PID names, are left alone, with a warning.

    Args:
        environ: The environment variables.
        first: The descriptor of the first one.

    Raises:
        ValueError: The variables are not valid, or a descriptor is not such a socket.
    """
    count, names, process = (environ.get(f"LISTEN_{key}", "") for key in ("FDS", "FDNAMES", "PID"))
    if not count:
        return []
    if not (count.isascii() and count.isdecimal()):
        raise ValueError(f"LISTEN_FDS={count}: the number of sockets is not a number")
    if process not in ("", str(os.getpid())):
        _logger.warning(
            "The sockets of LISTEN_FDS are not used: LISTEN_PID=%s is another process than this one, %d. A script that "
            "starts the service has to use exec",
            process,
            os.getpid(),
        )
        return []
    named = names.split(":") if names else ["unknown"] * int(count)  # the name of sd_listen_fds_with_names(3)
    if len(named) != int(count):
        raise ValueError(f"LISTEN_FDNAMES={names}: there are {len(named)} names for the {count} sockets of LISTEN_FDS")
    taken: list[InheritedSocket] = []
    try:
        for number, name in enumerate(named):
            taken.append(InheritedSocket(name, _listening(first + number, name)))
    except ValueError:
        for one in taken:
            one.socket.detach()  # nothing is closed that is not ours
        raise
    return taken


def _listening(descriptor: int, name: str) -> socket.socket:
    try:
        taken = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ValueError(f"LISTEN_FDS: descriptor {descriptor} ({name}) is not a socket") from error
    is_tcp = taken.family in (socket.AF_INET, socket.AF_INET6) and taken.type == socket.SOCK_STREAM
    if not is_tcp or not taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        taken.detach()
        raise ValueError(
            f"LISTEN_FDS: descriptor {descriptor} ({name}) is not a listening TCP socket; in a systemd socket unit use "
            "ListenStream=ADDRESS:PORT and Accept=no"
        )
    taken.set_inheritable(False)
    return taken
