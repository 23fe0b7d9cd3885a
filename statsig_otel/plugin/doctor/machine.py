"""Checks the machine and what is installed on it: versions, SQLite's known faults, open files, the clock."""

import ctypes
import platform
import resource
import sqlite3
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, TypeAlias

from statsig_otel import __version__
from statsig_otel.plugin.doctor.finding import Finding

Version: TypeAlias = tuple[int, ...]

_LIBRARIES: Final = (
    "falcon", "grpcio", "httptools", "msgspec", "opentelemetry-api", "opentelemetry-proto", "protobuf", "pydantic",
    "ruamel.yaml", "urllib3", "uvicorn",
)  # fmt: skip

_OTHER_FILES: Final = 64
"""Open files besides the connections: those of the queue, the exporters and the libraries."""


@dataclass(frozen=True, slots=True)
class SqliteFault:
    """A fault of SQLite that a queue may meet.

    Attributes:
        what: What it does.
        since: The first version that has it.
        fixed: The first version without it.
        backports: The first versions of older series without it.
        hint: What to do.
    """

    what: str
    since: Version
    fixed: Version
    backports: tuple[Version, ...]
    hint: str

    def is_in(self, found: Version) -> bool:
        """Whether a version has it. A backport counts for its own series: 3.50.7 for 3.50.8, but not for 3.51.0."""
        mended = any(backport[:2] == found[:2] and found >= backport for backport in self.backports)
        return self.since <= found < self.fixed and not mended


FAULTS: Final = (
    # https://sqlite.org/wal.html#walresetbug; https://sqlite.org/releaselog/3_51_3.html
    SqliteFault(
        "has the WAL-reset bug: two connections that write or checkpoint at the same moment may damage the database",
        since=(3, 7, 0),
        fixed=(3, 51, 3),
        backports=((3, 44, 6), (3, 50, 7)),
        hint="the service writes with one connection alone: never write to queue.db with another tool while it runs. "
        "Fixed in SQLite 3.51.3, 3.50.7 and 3.44.6",
    ),
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
        yield Finding("platform", "warning", platform.platform(), "statsig-otel is tested on Linux and macOS alone")


def sqlite(found: Version = sqlite3.sqlite_version_info) -> Iterator[Finding]:
    """The version of SQLite that Python uses, and its known faults."""
    shown = ".".join(map(str, found))
    faults = [fault for fault in FAULTS if fault.is_in(found)]
    for fault in faults:
        yield Finding("sqlite", "warning", f"{shown} {fault.what}", fault.hint)
    if not faults:
        yield Finding("sqlite", "ok", shown)


def open_files(connections: int) -> Finding:
    """Whether the limit of open files allows as many connections as are configured.

    Args:
        connections: `max_connections` of all servers together.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + _OTHER_FILES
    if hard == resource.RLIM_INFINITY:
        return Finding("open files", "ok", "no limit")
    if hard < needed:
        detail = f"at most {hard}, and max_connections: {connections} needs {needed}"
        return Finding("open files", "warning", detail, "raise the limit (LimitNOFILE, ulimit -n), or take fewer")
    return Finding("open files", "ok", f"at most {hard}")


class _Timex(ctypes.Structure):
    """`struct timex` (adjtimex(2)), as far as it is read here."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 512),
    )


_UNSYNCHRONISED: Final = 0x40  # STA_UNSYNC
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
        timex = _Timex()
        state = ctypes.CDLL(None).adjtimex(ctypes.byref(timex))
    except (OSError, AttributeError):  # no Linux
        return None
    return True if state >= 0 and not timex.status & _UNSYNCHRONISED else None


def clock(kept: bool | None, offsets: Iterable[tuple[str, float]]) -> Finding:  # noqa: FBT001 - three answers
    """Whether the clock is right. The timestamps of webhooks are compared with it.

    Args:
        kept: Whether the system says that it is.
        offsets: By how many seconds servers are ahead of it, each with its exporter.
    """
    if kept:
        return Finding("clock", "ok", "synchronised, as the system says")
    found = sorted(offsets, key=lambda one: abs(one[1]))
    if not found:
        hint = (
            "look whether a time service runs: webhooks are refused whose timestamp is off by more than the tolerance"
        )
        return Finding("clock", "unknown", "can't be told: the system does not say that it is synchronised", hint)
    name, offset = found[0]
    detail = f"{abs(offset):.0f} s {'behind' if offset > 0 else 'ahead of'} the server of {name}"
    if abs(offset) < _OFF_A_LITTLE:
        return Finding("clock", "ok", f"agrees with the server of {name}")
    hint = "run a time service, such as chrony or systemd-timesyncd"
    return Finding("clock", "failed" if abs(offset) >= _OFF_TOO_MUCH else "warning", detail, hint)
