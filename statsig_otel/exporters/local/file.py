"""The file exporter: OTLP/JSON, a line for each change, on the disk before it counts as delivered.

The Collector's `otlp_json_file` receiver reads what is written here. A line is a complete `ExportLogsServiceRequest`
with one `ResourceLogs`, so a batch becomes as many lines as records were joined in it: that receiver cuts lines at
1 MiB by default, which a whole batch can exceed.
"""

import fcntl
import logging
import os
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
from statsig_otel.exporters.exporter import Blocked, Delivered, Outcome, Rejected, RetryLater
from statsig_otel.exporters.otlp.json_lines import to_json_line
from statsig_otel.exporters.paths import NO_PATH, WRITABLE_HINT, exists, unusable

_log = logging.getLogger(__name__)

_LINE_BEGINNING: Final = b'{"resourceLogs"'
_BLOCK: Final = 1 << 16
_STANDARD_STREAMS: Final = frozenset({"/dev/stdin", "/dev/stdout", "/dev/stderr"})


class FileSettings(Settings):
    """The settings of a `file` exporter, named as the Collector's are.

    Attributes:
        path: Where to write. Its directory has to exist.
        append: True keeps what the file holds. That is the default here, unlike the Collector's: what was delivered
            must outlive a restart. False empties the file at each start and each reload that changes the exporter.
        format: `json`, the only one.

    Example:
        >>> from statsig_otel.exporters import FileSettings
        >>> FileSettings.model_validate({"path": "/var/log/changes.jsonl"}).append
        True
    """

    refused: ClassVar[Mapping[str, str]] = {
        "compression": "leave it out: lines stand in plain text; logrotate can compress what it has renamed",
        "create_directory": "make the directory first: the exporter does not",
        "directory_permissions": "make the directory first: the exporter does not",
        "encoding": "leave it out: lines are OTLP/JSON",
        "flush_interval": "leave it out: each batch is on the disk before it counts as delivered",
        "group_by": "leave it out: there is one file; write several exporters for several files",
        "rotation": "let logrotate rename the file (create, not copytruncate): a new one is begun",
    }

    needed: ClassVar[Mapping[str, str]] = {"path": "name a file, such as /var/log/statsig-otel/changes.jsonl"}

    path: Path = Field(json_schema_extra={"minLength": 1})
    append: bool = True
    format: Literal["json"] = "json"

    @field_validator("path", mode="before")
    @classmethod
    def _name_one(cls, value: object) -> object:
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
    """What would keep an exporter from writing to a file, except a lock (`is_locked`). Creates and changes nothing."""
    if "\0" in str(path):
        return Fault(NO_PATH)
    try:
        is_there = exists(path)
        # A link may lead to a file that is still to be made.
        folder = Path(os.path.realpath(path)).parent if path.is_symlink() else path.parent
    except OSError as error:
        return unusable(path, error)
    if not folder.is_dir():
        return Fault(f"there is no directory {folder}", "make it: the exporter does not")
    if is_there and not path.is_file():
        return Fault(f"{path} is no regular file", "only a regular file can be synced and cut")
    if not (os.access(path, os.R_OK | os.W_OK) if is_there else os.access(folder, os.W_OK | os.X_OK)):
        return Fault(f"{path} can't be written", WRITABLE_HINT)
    if is_there and not _begins_as_ours(path):
        return Fault(f"{path} holds something else than OTLP/JSON lines of logs", "move it away, or name another")
    return None


def _begins_as_ours(path: Path) -> bool:
    """Whether a file is empty or begins with a line of ours; one that can't be read counts as ours."""
    try:
        with path.open("rb") as file:
            return _LINE_BEGINNING.startswith(file.read(len(_LINE_BEGINNING)))
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

    `Delivered` means that the lines are on the disk (fsync). A write that fails half-way is cut away again, at the
    latest before the next one, so the file holds whole lines only. The file is locked for this exporter as long as it
    is open. Where it was renamed or removed from outside, as logrotate does, the next `send` opens a new one; a batch
    that is written just then can stand in both. (logrotate's `copytruncate` loses lines by its nature; use `create`.)

    The timeout of `send` does not apply: a disk can't be told to hurry.

    Args:
        name: The exporter's id, such as `file/archive`.
        settings: Which file, and how it is opened.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from statsig_otel.exporters import FileExporter, FileSettings
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "changes.jsonl")
        ...     exporter = FileExporter("file", FileSettings(path=path))
        ...     exporter.start()
        ...     outcome = exporter.send(b"", count=0, timeout=5)
        ...     exporter.shutdown()
        ...     print(outcome, path.read_bytes())
        Delivered() b''
    """

    def __init__(self, name: str, settings: FileSettings) -> None:
        self._name = name
        self._path = settings.path.absolute()  # the program may go elsewhere: that is no rotation
        self._append = settings.append
        self._lock = threading.Lock()  # `shutdown` must not take the descriptor away from under a write
        self._running = False
        self._fd: int | None = None
        self._whole_until: int | None = None  # where a failed write began, until it is cut away

    def start(self) -> None:
        """Open and lock the file; create it (0600) where there is none; cut a torn last line away.

        Raises:
            OSError: It can't be opened or is locked by somebody else, or its directory does not exist.
            ValueError: It is no regular file, or holds something else than OTLP/JSON lines of logs.
        """
        with self._lock:
            self._fd = self._open()
            if not self._append:
                os.ftruncate(self._fd, 0)
            self._running = True

    def send(self, payload: bytes, count: int, timeout: float) -> Outcome:  # noqa: ARG002 - the seam's signature
        """Write the batch and sync it to the disk. For the parameters see `Exporter.send`.

        Returns:
            `Delivered`: The lines are on the disk.
            `RetryLater`: The disk is full, failed, or the file is locked. Nothing of the batch stays in the file, but
                where the disk refuses even the cutting back; then the next call begins with that.
            `Blocked`: After a rotation, what stands at the path is not ours to write to.
            `Rejected`: The payload is no `ExportLogsServiceRequest`.
        """
        try:
            lines = _lines(payload)
        except (DecodeError, RecursionError) as error:
            return Rejected(f"the payload can't be read as an ExportLogsServiceRequest: {error}")
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
        """Close the file, after the write that may be under way. Safe to call twice, and without a `start`."""
        with self._lock:
            self._running = False
            self._close()

    def _close(self) -> None:
        if self._fd is not None:
            with suppress(OSError):  # all that counts was synced; what stays torn is cut when the file is opened again
                self._cut_back(self._fd)
            with suppress(OSError):
                os.close(self._fd)
        self._fd = self._whole_until = None

    def _open(self) -> int:
        fd = _open_locked(self._path)
        try:
            cut = _cut_torn_line(fd, self._path)
        except BaseException:
            os.close(fd)
            raise
        if cut:
            _log.warning(
                "%s: cut %d bytes off the end of %s: a line that was not written to its end, "
                "and so never counted as delivered.",
                self._name, cut, self._path,
            )  # fmt: skip
        return fd

    def _current_file(self) -> int:
        """The descriptor of the file that the path names now: opened anew after a rotation."""
        if self._fd is not None:
            self._cut_back(self._fd)
            if _names(self._path, self._fd):
                return self._fd
            _log.info("%s: %s was renamed or removed; opening it anew", self._name, self._path)
            self._close()
        self._fd = self._open()
        return self._fd

    def _write(self, fd: int, lines: bytes) -> None:
        self._whole_until = os.fstat(fd).st_size
        try:
            rest = memoryview(lines)
            while rest:
                rest = rest[os.write(fd, rest) :]
            # After a failed fsync the kernel may drop the pages and call the next fsync a success. So these lines are
            # cut away like half-written ones, and written anew with the next attempt.
            os.fsync(fd)
        except OSError:
            with suppress(OSError):
                self._cut_back(fd)
            raise
        self._whole_until = None
        if not _names(self._path, fd):
            # Whoever moved it may have copied it already and remove it next: better the lines twice than not at all.
            raise FileNotFoundError("it was renamed or removed while it was written to")

    def _cut_back(self, fd: int) -> None:
        """Remove what a failed write left."""
        if self._whole_until is not None:
            # Only ever shorten: somebody may have emptied the file meanwhile (logrotate's copytruncate).
            if os.fstat(fd).st_size > self._whole_until:
                os.ftruncate(fd, self._whole_until)
            self._whole_until = None


def _lines(payload: bytes) -> bytes:
    """One OTLP/JSON line for each `ResourceLogs` of the payload."""
    request = ExportLogsServiceRequest.FromString(payload)
    return b"".join(
        to_json_line(ExportLogsServiceRequest(resource_logs=[resource_logs])) + b"\n"
        for resource_logs in request.resource_logs
    )


def _names(path: Path, fd: int) -> bool:
    """Whether the path names the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False


def _open_locked(path: Path) -> int:
    """Open a regular file for appending and lock it. The lock goes with the descriptor, however the process ends."""
    if str(path) in _STANDARD_STREAMS:
        raise ValueError(f"{path} is no file to sync and cut; use the debug exporter to print log records")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the directory {path.parent} does not exist; create it, or change path ({path})")
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # looked at first: opening a pipe or a device may block or act
            raise ValueError(
                f"{path} is no regular file, and only one can be synced and cut; "
                "give a file's path, or use the debug exporter to print log records"
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
                "stop that one, or give this exporter a path of its own"
            ) from None
        if os.fstat(fd).st_size == 0:
            _sync_directory(path)  # it may be new, and a file without its name is lost with the power
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


def _cut_torn_line(fd: int, path: Path) -> int:
    """Cut the file back to its last line feed, and return how many bytes went.

    Raises:
        ValueError: The file does not begin as ours do. It is left as it is.
    """
    if not _LINE_BEGINNING.startswith(os.pread(fd, len(_LINE_BEGINNING), 0)):
        raise ValueError(
            f"{path} holds something else than OTLP/JSON lines of logs and is left untouched; "
            "move it away, or change path"
        )
    size = os.fstat(fd).st_size
    whole = _end_of_last_line(fd, size)
    if whole < size:
        os.ftruncate(fd, whole)
    return size - whole


def _end_of_last_line(fd: int, size: int) -> int:
    """The offset behind the last line feed, 0 where there is none. Reads backwards, one block at a time."""
    end = size
    while end > 0:
        begin = max(0, end - _BLOCK)
        found = os.pread(fd, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0
