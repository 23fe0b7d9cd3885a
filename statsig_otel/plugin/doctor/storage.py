"""Checks the queue's directory: its file system, its owner, and how the last service left it. Changes nothing."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

from statsig_otel.exporters.paths import directory_option, exists, nearest
from statsig_otel.exporters.queue import write_ahead_log
from statsig_otel.exporters.queue.directory import CONTROL, DATABASE, QueueDirectory
from statsig_otel.plugin.control.socket import ControlError, ServiceNotRunningError, call
from statsig_otel.plugin.doctor.finding import Finding

_OWNER: Final = "run this as the service's own user, or as root"
_MOUNTS: Final = Path("/proc/self/mountinfo")

# "WAL does not work over a network filesystem": https://sqlite.org/wal.html
_NETWORK: Final = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs", "gpfs", "lustre", "ncpfs",
    "nfs", "nfs4", "smb3", "smbfs", "virtiofs",
})  # fmt: skip
_MEMORY: Final = frozenset({"ramfs", "tmpfs"})

_GONE: Final = {
    "queue.db": "no service runs; a queue was here before, and its database (queue.db) is gone or empty",
    "queue.db-wal": "no service runs; it was not closed in order, and its log (queue.db-wal) is gone",
}

_ASIDE: Final[dict[Literal["corrupt", "salvaged", "unreadable"], str]] = {
    "corrupt": "the next start, or the running service, carries over what can be read",
    "salvaged": "what could be read was carried over; delete it once you have read the log",
    "unreadable": "nothing could be read: keep it for a closer look, or delete it",
}
"""The hint for databases that were set aside."""


def owner(directory: Path) -> str | None:
    """The owner of a queue's directory, in words; None if it has none.

    Raises:
        OSError: This user can't find out.
    """
    with suppress(ServiceNotRunningError, ControlError):
        return f"process {call(directory / CONTROL, 'queue')['pid']}"
    process = QueueDirectory(directory).owner()
    return None if process is None else f"process {process}, starting or stopping"


def queue(directory: Path, min_free_bytes: int) -> Iterator[Finding]:
    """Check a queue's directory, which need not exist, and whether its disk has `min_free_bytes`."""
    existing = nearest(directory)
    yield _access(directory, existing)
    try:
        yield _space(QueueDirectory(directory), existing, min_free_bytes)
    except OSError as error:
        yield _unreadable("disk space", directory, error)
    yield check_file_system(directory)
    try:
        yield from _state(directory)
    except OSError as error:
        yield _unreadable("queue state", directory, error)


def _unreadable(check: str, directory: Path, error: OSError) -> Finding:
    hint = _OWNER if isinstance(error, PermissionError) else None
    return Finding(check, "unknown", f"{directory} can't be read: {error.strerror}", hint)


def exporters(directory: Path) -> Iterator[Finding]:
    """Check whether the exporters of the running service deliver, if one runs."""
    try:
        senders = call(directory / CONTROL, "queue")["exporters"]
    except (ServiceNotRunningError, ControlError, OSError):
        return
    for name, sender in senders.items():
        check, state = f"exporters::{name}", sender["state"]
        if state == "blocked":
            hint = f"repair it, then run `statsig-otel queue resume {name} {directory_option(directory.absolute())}`"
            yield Finding(check, "failed", f"is blocked: {sender['last_error']}", hint)
        elif state in ("refused", "retrying"):
            yield Finding(check, "warning", f"can't deliver now: {sender['last_error']}")
        else:
            yield Finding(check, "ok", f"of the running service: {state}")


def _access(directory: Path, existing: Path) -> Finding:
    if not existing.is_dir():
        return Finding("queue directory", "failed", f"{existing} is not a directory", "name another in file_storage")
    if (fault := QueueDirectory(directory).check()) is not None:
        return Finding("queue directory", "failed", *fault)
    if existing == directory.absolute() and existing.stat().st_mode & stat.S_IWOTH:
        hint = f"chmod o-w {directory}, unless nobody else has access to this machine or container"
        return Finding("queue directory", "warning", f"{directory} can be written by every user", hint)
    if existing == directory.absolute():
        return Finding("queue directory", "ok", str(directory))
    return Finding("queue directory", "ok", f"{directory}, which does not exist yet, and can be created")


def _space(directory: QueueDirectory, existing: Path, min_free_bytes: int) -> Finding:
    if (fault := directory.check_space(min_free_bytes)) is not None:
        return Finding("disk space", "failed", *fault)
    found = os.statvfs(existing)
    detail = (
        f"{found.f_bavail * found.f_frsize >> 20} MiB free; webhooks are refused below {-(-min_free_bytes >> 20)} MiB"
    )
    if found.f_files and not found.f_favail:
        return Finding("disk space", "failed", "no more files can be created (no inodes)", "delete files")
    return Finding("disk space", "ok", detail)


def file_system(path: Path, mounts: str) -> str | None:
    """The type of the file system of a path; None if it is not known.

    Args:
        path: The path, without symbolic links.
        mounts: The content of mountinfo (proc_pid_mountinfo(5)).
    """
    best, found = -1, None
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        # Spaces and some other characters are octal escapes.
        point = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), left.split(" ")[4]))
        if path.is_relative_to(point) and len(point.parts) >= best:  # the last one covers those before it
            best, found = len(point.parts), right.split(" ")[0]
    return found


def check_file_system(directory: Path) -> Finding:
    """Whether a queue's directory, which need not exist, is on a file system that keeps what was acknowledged."""
    try:
        found = file_system(nearest(directory).resolve(), _MOUNTS.read_text())
    except OSError:
        found = None
    if found is None:
        return Finding("file system", "unknown", "can't be determined", "the queue needs a local disk")
    if found in _NETWORK:
        hint = "put the queue on a local disk: SQLite's log (WAL) does not work over a network"
        return Finding("file system", "warning", f"{found}, which is not on this machine", hint)
    if found in _MEMORY:
        hint = "put the queue on a disk: what was acknowledged is gone after a restart of the machine"
        return Finding("file system", "warning", f"{found}, which is in memory", hint)
    if found == "overlay":
        hint = "mount a volume for the queue: what was acknowledged goes with the container"
        return Finding("file system", "warning", "overlay, most likely a container's own layer", hint)
    return Finding("file system", "ok", found)


def _after_crash(log: write_ahead_log.LogCheck) -> Finding:
    detail = "no service runs; it was not closed in order"
    if log.is_damaged:
        hint = "the next start sets the queue aside, and carries over what can be read"
        return Finding("queue state", "failed", f"{detail}, and its log (queue.db-wal) is damaged", hint)
    if log.missing_frames:
        hint = "restore queue.db-wal from a copy, if there is one, before the service starts"
        return Finding("queue state", "failed", f"{detail}, and its log (queue.db-wal) was cut short", hint)
    return Finding("queue state", "warning", detail, "nothing to do: the next start picks up what was acknowledged")


def _state(directory: Path) -> Iterator[Finding]:
    who = owner(directory)
    files = QueueDirectory(directory)
    if who is not None:
        yield Finding("queue state", "ok", f"in use by {who}")
    elif (missing := files.missing_file()) is not None:
        hint = f"move {missing} back to its place before the service starts"
        yield Finding("queue state", "failed", _GONE[missing], hint)
    elif files.has_only_log():
        detail = "no service runs; its database (queue.db) is gone or empty, and its log is not"
        hint = "restore queue.db; otherwise the next start carries over what its log contains"
        yield Finding("queue state", "failed", detail, hint)
    elif not exists(directory / DATABASE):
        yield Finding("queue state", "ok", "no queue yet")
    elif not files.was_left_clean():
        yield _after_crash(write_ahead_log.check(files.database))
    else:
        yield Finding("queue state", "ok", "no service runs; closed in order")
    for kind, hint in _ASIDE.items() if directory.is_dir() else ():
        if aside := files.set_aside_files(kind):
            yield Finding("set aside", "warning", ", ".join(file.name for file in aside), hint)
