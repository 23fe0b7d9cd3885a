"""Opens the listening sockets of servers, or takes those that a supervisor passes to the process.

The latter is socket activation (sd_listen_fds(3)). The supervisor keeps the sockets while the service restarts, so
clients wait in the backlog instead of being refused.
"""

import errno
import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from weakref import WeakSet

from statsig_otel.config.errors import Fault

_logger: Final = logging.getLogger(__name__)

_BACKLOG: Final = 4096

_MOST_DIGITS: Final = 6
"""More digits are more descriptors than a process can have."""

FIRST: Final = 3
"""The descriptor of the first socket, after standard input, output and error."""


def host_port(host: str, port: int) -> str:
    """Host and port as in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class ListenError(OSError):
    """The server can't listen on an address: the `fault` names it, and says what is wrong and what to do."""

    def __init__(self, number: int | None, address: tuple[str, int], cause: Fault) -> None:
        self.address: Final = address
        self.fault: Final = Fault(f"cannot listen on {host_port(*address)}: {cause.message}", cause.hint)
        super().__init__(number, "; ".join(filter(None, self.fault)))


def listen(host: str, port: int) -> socket.socket:
    """Listen on an address, without blocking.

    Raises:
        ListenError: The address cannot be listened on; the message says which and why.
    """
    try:
        family, address = _resolve(host, port)
    except (socket.gaierror, UnicodeError) as error:
        words = error.strerror if isinstance(error, socket.gaierror) else error
        cause = Fault(f"the host is not known: {words}")
        raise ListenError(errno.EADDRNOTAVAIL, (host, port), cause) from error
    listening: socket.socket | None = None
    try:
        listening = socket.socket(family, socket.SOCK_STREAM)
        # Only for connections of an earlier run that linger in TIME_WAIT; without SO_REUSEPORT a second listener fails.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host in ("", "::") else 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
        listening.setblocking(False)
    except (OSError, OverflowError) as error:
        if listening is not None:
            listening.close()
        number = error.errno if isinstance(error, OSError) else errno.EINVAL
        raise ListenError(number, (host, port), _cause(error, address[0])) from error
    return listening


def close_in_child(of_server: socket.socket) -> None:
    """Close the copy of a socket in a forked child, which serves nobody: the connections are its parent's."""
    _sockets.add(of_server)


_sockets: Final[WeakSet[socket.socket]] = WeakSet()


def _close_all() -> None:
    for one in list(_sockets):
        if (descriptor := one.detach()) >= 0:  # `close` would wait for the event loop, which the child does not run
            os.close(descriptor)


os.register_at_fork(after_in_child=_close_all)


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    if not host and socket.has_dualstack_ipv6():
        return socket.AF_INET6, ("::", port)
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)  # stable: IPv4 first, else as the system orders them
    family, _, _, _, address = found[0]
    return family, (str(address[0]), port)


def _cause(error: OSError | OverflowError, address: str) -> Fault:
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        return Fault("the port is in use", "stop the process that listens there, or choose another port")
    if number in (errno.EACCES, errno.EPERM):
        return Fault(
            "no permission",
            "ports below 1024 need a privilege: choose a higher one, or let a supervisor listen (docs/supervisors.md)",
        )
    if number == errno.EADDRNOTAVAIL:
        return Fault(f"{address} is not an address of this machine")
    return Fault(str(error.strerror if isinstance(error, OSError) else error))


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
    if not (count.isascii() and count.isdecimal() and len(count) <= _MOST_DIGITS):
        raise ValueError(f"LISTEN_FDS={count}: it is not a number of sockets")
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
