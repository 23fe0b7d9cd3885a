"""The file exporter: appends log records as OTLP/JSON lines and syncs them to disk.

The Collector's `otlp_json_file` receiver can read the file. Each line is a complete `ExportLogsServiceRequest` with one
`ResourceLogs`. So a batch becomes one line per record: that receiver truncates lines at 1 MiB by default, which a whole
batch can exceed.
"""

import fcntl
import logging
import os
import re
import stat
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final, Literal

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from pydantic import Field, field_validator

from statsig_otel.config.errors import Fault, SettingError
from statsig_otel.config.model import Settings
from statsig_otel.config.units import Duration
from statsig_otel.config.values import PlainPath
from statsig_otel.exporters.decoding import unreadable
from statsig_otel.exporters.exporter import Blocked, Delivered, Outcome, Rejected, RetryLater
from statsig_otel.exporters.exporter_type import IN_A_DESTINATION
from statsig_otel.exporters.json_lines import to_json_line
from statsig_otel.exporters.paths import exists, forbidden, is_open_as, unusable
from statsig_otel.exporters.terminal import printable

_logger: Final = logging.getLogger(__name__)

_LINE_BEGINNING: Final = b'{"resourceLogs"'
_NEVER_IN_LINES: Final = re.compile(rb"[\x01-\x09\x0b-\x1f]")
_BLOCK: Final = 1 << 16
_STANDARD_STREAMS: Final = frozenset({"/dev/stdin", "/dev/stdout", "/dev/stderr"})


class FileSettings(Settings):
    """The settings of a `file` exporter, with the Collector's keys.

    Attributes:
        path: The file to write to. Its directory must exist.
        append: True keeps the content of the file. Unlike in the Collector this is the default, because delivered
            records must survive a restart. False empties the file at each start, and at each reload that changes the
            exporter.
        format: `json`, the only format.

    Example:
        >>> from statsig_otel.exporters import FileSettings
        >>> FileSettings.model_validate({"path": "/var/log/changes.jsonl"}).append
        True
    """

    meant: ClassVar[Mapping[str, str]] = IN_A_DESTINATION
    unsupported: ClassVar[Mapping[str, str]] = {
        "compression": "leave it out: lines are not compressed; logrotate can compress rotated files",
        "create_directory": "create the directory first: the exporter does not",
        "directory_permissions": "create the directory first: the exporter does not",
        "encoding": "leave it out: lines are OTLP/JSON",
        "flush_interval": "leave it out: each batch is synced to disk before it counts as delivered",
        "group_by": "leave it out: there is one file; configure one exporter per file",
        "rotation": "let logrotate rename the file (create, not copytruncate): the exporter then starts a new one",
    }
    implied: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "compression": ("",),
        "create_directory": (False,),
        "flush_interval": (Duration,),
        "group_by": ({"enabled": False},),
    }

    needed: ClassVar[Mapping[str, str]] = {"path": "name a file, such as /var/log/statsig-otel/changes.jsonl"}

    path: PlainPath = Field(json_schema_extra={"minLength": 1})
    append: bool = True
    format: Literal["json"] = "json"

    @field_validator("path", mode="before")
    @classmethod
    def _refuse_empty(cls, value: object) -> object:
        if value == "":
            raise SettingError("is empty", cls.needed["path"])
        return value

    @field_validator("path")
    @classmethod
    def _name_a_file(cls, path: Path) -> Path:
        if not path.name:
            raise ValueError("must name a file, such as /var/log/statsig-otel/changes.jsonl")
        return path

    @field_validator("format", mode="before")
    @classmethod
    def _explain_proto(cls, value: object) -> object:
        if value == "proto":
            raise ValueError("proto is not supported; leave the key out to write OTLP/JSON lines (json)")
        return value


def check_path(path: Path) -> Fault | None:
    """The fault that would keep an exporter from writing, except a lock (`is_locked`). Creates and changes nothing."""
    try:
        is_there = exists(path)
        # A link may lead to a file that is still to be made.
        folder = Path(os.path.realpath(path)).parent if path.is_symlink() else path.parent
    except OSError as error:
        return unusable(path, error)
    if not folder.is_dir():
        return Fault(f"there is no directory {folder}", "create it: the exporter does not")
    if is_there and not path.is_file():
        return Fault(f"{path} is not a regular file", "only a regular file can be synced and truncated")
    if not (os.access(path, os.R_OK | os.W_OK) if is_there else os.access(folder, os.W_OK | os.X_OK)):
        return forbidden(path)
    if is_there and not _is_ours(path):
        return Fault(f"{path} contains something other than OTLP/JSON log lines", "move it away, or name another path")
    return None


def _is_ours(path: Path) -> bool:
    """The same as `_has_our_lines`; a file that can't be read counts as ours."""
    try:
        with path.open("rb") as file:
            return _has_our_lines(file.fileno())
    except OSError:
        return True


def is_locked(path: Path) -> bool:
    """Whether an exporter writes to a file now, in this process or another."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return False
    try:
        # For a moment, and shared: only an exporter that starts in this very moment would see it.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


class FileExporter:
    """Appends log records to a file as OTLP/JSON lines.

    `Delivered` means that the lines are on disk (fsync). A partial write is truncated, at the latest before the next
    write, so the file contains whole lines only. The file is locked while it is open. If another program renames or
    removes the file, as logrotate does, the next `send` opens a new one; a batch that is being written at that moment
    can be in both files. (logrotate's `copytruncate` can lose lines; use `create`.)

    The timeout of `send` does not apply: a write to disk can't be interrupted.

    Args:
        name: The exporter's id, such as `file/archive`.
        settings: The exporter's settings.
    """

    def __init__(self, name: str, settings: FileSettings) -> None:
        self._name = name
        self._path = settings.path.absolute()  # a change of the working directory must not look like a rotation
        self._append = settings.append
        self._lock = threading.Lock()  # `shutdown` must not close the descriptor during a write
        self._running = False
        self._fd: int | None = None
        self._truncate_to: int | None = None  # the offset at which a failed write began, until it is truncated

    def start(self) -> None:
        """Open and lock the file, create it with mode 0600 if it does not exist, and truncate a partial last line.

        Raises:
            OSError: The file can't be opened or is locked by another process, or its directory does not exist.
            ValueError: The file is not a regular file, or contains something other than OTLP/JSON log lines.
        """
        with self._lock:
            self._fd = self._open()
            if not self._append:
                os.ftruncate(self._fd, 0)
            self._running = True
        _logger.info("%s writes to %s", self._name, printable(str(self._path)))

    def send(self, payload: bytes, count: int, timeout: float) -> Outcome:  # noqa: ARG002 - the seam's signature
        """Write the batch and sync it to disk. For the parameters see `Exporter.send`.

        Returns:
            `Delivered`: The lines are on disk.
            `RetryLater`: The disk is full or failed, or the file is locked. Nothing of the batch stays in the file. If
                even the truncation fails, the next call repeats it first.
            `Blocked`: After a rotation, the path names a file that the exporter must not write to.
            `Rejected`: The payload is not an `ExportLogsServiceRequest`.
        """
        try:
            lines = _lines(payload)
        except (DecodeError, RecursionError) as error:
            return Rejected(unreadable(error))
        with self._lock:
            if not self._running:
                return RetryLater(f"{self._path} is not open: the exporter was not started, or was shut down")
            try:
                self._write(self._current_file(), lines)
            except (PermissionError, ValueError) as error:
                return Blocked(str(error))
            except OSError as error:
                return RetryLater(f"{self._path} can't be written: {error}")
        return Delivered()

    def shutdown(self) -> None:
        """Close the file after a write in progress. Safe to call twice, and without `start`."""
        with self._lock:
            self._running = False
            self._close()

    def _close(self) -> None:
        if self._fd is not None:
            # Delivered lines are synced. If this fails, the partial line is truncated when the file is opened again.
            with suppress(OSError):
                self._truncate_failed_write(self._fd)
            with suppress(OSError):
                os.close(self._fd)
        self._fd = self._truncate_to = None

    def _open(self) -> int:
        fd = _open_locked(self._path)
        try:
            removed = _truncate_partial_line(fd, self._path)
        except BaseException:
            os.close(fd)
            raise
        if removed:
            _logger.warning(
                "%s: removed a partial line of %d bytes from the end of %s; it was never counted as delivered",
                self._name, removed, self._path,
            )  # fmt: skip
        return fd

    def _current_file(self) -> int:
        """The descriptor of the file at the path. After a rotation, the file is reopened."""
        if self._fd is not None:
            self._truncate_failed_write(self._fd)
            if is_open_as(self._path, self._fd):
                return self._fd
            _logger.info("%s: %s was renamed or removed; reopening it", self._name, self._path)
            self._close()
        self._fd = self._open()
        return self._fd

    def _write(self, fd: int, lines: bytes) -> None:
        self._truncate_to = os.fstat(fd).st_size
        try:
            rest = memoryview(lines)
            while rest:
                rest = rest[os.write(fd, rest) :]
            # After a failed fsync the kernel may drop the pages, and the next fsync may succeed without them. So these
            # lines are truncated like a partial write, and written again by the next attempt.
            os.fsync(fd)
        except OSError:
            with suppress(OSError):
                self._truncate_failed_write(fd)
            raise
        self._truncate_to = None
        if not is_open_as(self._path, fd):
            # The renamed file may already have been copied and may be removed next. Lines in both files are better than
            # lost lines.
            raise FileNotFoundError("the file was renamed or removed while it was written to")

    def _truncate_failed_write(self, fd: int) -> None:
        """Remove what a failed write left in the file."""
        if self._truncate_to is not None:
            # The file may have been emptied meanwhile (logrotate's copytruncate): never extend it.
            if os.fstat(fd).st_size > self._truncate_to:
                os.ftruncate(fd, self._truncate_to)
            self._truncate_to = None


def _lines(payload: bytes) -> bytes:
    """One OTLP/JSON line per `ResourceLogs` of the payload."""
    request = ExportLogsServiceRequest.FromString(payload)
    return b"".join(
        to_json_line(ExportLogsServiceRequest(resource_logs=[resource_logs])) + b"\n"
        for resource_logs in request.resource_logs
    )


def _open_locked(path: Path) -> int:
    """Open a regular file for appending and lock it. However the process ends, the kernel releases the lock."""
    if str(path) in _STANDARD_STREAMS:
        raise ValueError(f"{path} can't be synced and truncated; use the debug exporter to print log records")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the directory {path.parent} does not exist; create it, or change path ({path})")
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # checked first: opening a pipe or a device may block or have effects
            raise ValueError(
                f"{path} is not a regular file, and only a regular file can be synced and truncated; "
                "name another path, or use the debug exporter to print log records"
            )
    except FileNotFoundError:
        pass
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"{path} is locked: another process or another file exporter writes to it; "
                "stop that writer, or give this exporter another path"
            ) from None
        if os.fstat(fd).st_size == 0:
            _sync_directory(path)  # the file may be new: a power failure could lose its directory entry
    except BaseException:
        os.close(fd)
        raise
    return fd


def _sync_directory(path: Path) -> None:
    fd = os.open(path.resolve().parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _truncate_partial_line(fd: int, path: Path) -> int:
    """Truncate the file after its last line feed, and return the number of removed bytes.

    Raises:
        ValueError: The file contains something other than OTLP/JSON lines. It is not changed.
    """
    if not _has_our_lines(fd):
        raise ValueError(
            f"{path} contains something other than OTLP/JSON log lines and is not changed; "
            "move it away, or name another path"
        )
    size = os.fstat(fd).st_size
    whole = _end_of_last_line(fd, size)
    if whole < size:
        os.ftruncate(fd, whole)
    return size - whole


def _has_our_lines(fd: int) -> bool:
    """Whether a file is empty or begins with a line of ours, or with what a power failure may leave of the first ones.

    What was not synced, and so never counted as delivered, can be there as NULs, wholly or in part.
    """
    beginning = os.pread(fd, len(_LINE_BEGINNING), 0)
    if not beginning.startswith(b"\0"):
        return _LINE_BEGINNING.startswith(beginning)
    offset = 0
    while block := os.pread(fd, _BLOCK, offset):
        if _NEVER_IN_LINES.search(block):
            return False
        offset += len(block)
    return True


def _end_of_last_line(fd: int, size: int) -> int:
    """The offset after the last line feed, or 0 if there is none. Reads backwards in blocks."""
    end = size
    while end > 0:
        begin = max(0, end - _BLOCK)
        found = os.pread(fd, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0
