"""Checks the system and what is installed on it: versions, SQLite's known bugs, open files, the clock."""

import ctypes
import platform
import resource
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, TypeAlias

from statsig_otel import __version__
from statsig_otel.plugin.doctor.finding import Finding
from statsig_otel.plugin.server.server import OTHER_FILES

Version: TypeAlias = tuple[int, ...]

_LIBRARIES: Final = (
    "falcon", "grpcio", "httptools", "msgspec", "opentelemetry-api", "opentelemetry-proto", "protobuf", "pydantic",
    "ruamel.yaml", "urllib3", "uvloop",
)  # fmt: skip

# https://sqlite.org/wal.html#walresetbug; https://sqlite.org/releaselog/3_51_3.html
_FIXED_EARLIER: Final[Mapping[Version, Version]] = {(3, 44): (3, 44, 6), (3, 50): (3, 50, 7)}
_WAL_RESET: Final = (
    "has the WAL-reset bug: two connections that write or checkpoint at the same moment may damage the database"
)
_WAL_RESET_HINT: Final = (
    "the service writes with one connection alone: never write to queue.db with another tool while it runs. "
    "Fixed in SQLite 3.51.3, 3.50.7 and 3.44.6"
)


def versions() -> Iterator[Finding]:
    """The versions of this package, of Python and of the libraries, and the platform."""
    found: list[str] = []
    missing: list[str] = []
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    yield Finding("statsig-otel", "ok", __version__)
    yield Finding("python", "ok", f"{platform.python_implementation()} {platform.python_version()}")
    yield Finding("libraries", "ok", ", ".join(found))
    if missing:
        hint = "install statsig-otel again, with what it depends on"
        yield Finding("libraries", "failed", f"not installed: {', '.join(missing)}", hint)
    if sys.platform in ("linux", "darwin"):
        yield Finding("platform", "ok", platform.platform())
    else:
        yield Finding("platform", "warning", platform.platform(), "statsig-otel is tested on Linux and macOS only")


def sqlite(found: Version = sqlite3.sqlite_version_info) -> Finding:
    """The version of SQLite that Python uses, and whether it may damage a queue."""
    shown = ".".join(map(str, found))
    if (3, 7, 0) <= found < _FIXED_EARLIER.get(found[:2], (3, 51, 3)):
        return Finding("sqlite", "warning", f"{shown} {_WAL_RESET}", _WAL_RESET_HINT)
    return Finding("sqlite", "ok", shown)


def open_files(connections: int) -> Finding:
    """Whether the limit of open files allows as many connections as all servers together may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + OTHER_FILES
    if hard == resource.RLIM_INFINITY:
        return Finding("open files", "ok", "no limit")
    if hard < needed:
        detail = f"at most {hard}, and max_connections: {connections} needs {needed}"
        return Finding(
            "open files", "warning", detail, "raise the limit (LimitNOFILE, ulimit -n), or lower max_connections"
        )
    return Finding("open files", "ok", f"at most {hard}")


_TIME_ERROR: Final = 5  # adjtimex(2): the clock is not synchronised
_TIMEX_BYTES: Final = 1024  # more than a `struct timex` has
_TIMESYNCD: Final = Path("/run/systemd/timesync/synchronized")  # systemd-timesyncd(8)
_OFF_A_LITTLE: Final = 5.0
_OFF_TOO_MUCH: Final = 300.0
"""Seconds: the default tolerance of the receivers."""


def clock_is_kept() -> bool | None:
    """Whether the system says that its clock is kept right; None if it does not say so.

    It is never False, since some time services do not tell the kernel.
    """
    if _TIMESYNCD.exists():
        return True
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))  # modes is 0: it only reads
    except (OSError, AttributeError):  # not Linux
        return None
    return True if 0 <= state < _TIME_ERROR else None


def clock(kept: bool | None, offsets: Iterable[tuple[str, float]]) -> Finding:  # noqa: FBT001 - three answers
    """Whether the clock is right. The timestamps of webhooks are compared with it.

    Args:
        kept: Whether the system says that it is.
        offsets: By how many seconds servers are ahead of it, each after its exporter.
    """
    if kept:
        return Finding("clock", "ok", "synchronised, according to the system")
    found = sorted(offsets, key=lambda one: abs(one[1]))
    if not found:
        hint = (
            "check whether a time service runs: a webhook whose timestamp is off by more than the tolerance is refused"
        )
        return Finding("clock", "unknown", "can't be determined: the system does not say that it is synchronised", hint)
    name, offset = found[0]
    detail = f"{abs(offset):.0f} s {'behind' if offset > 0 else 'ahead of'} the server of {name}"
    if abs(offset) < _OFF_A_LITTLE:
        return Finding("clock", "ok", f"agrees with the server of {name}")
    hint = "run a time service, such as chrony or systemd-timesyncd"
    return Finding("clock", "failed" if abs(offset) >= _OFF_TOO_MUCH else "warning", detail, hint)
