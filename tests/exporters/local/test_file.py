"""The file exporter against real files, real processes and real faults of the kernel."""

import errno
import json
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from pydantic import ValidationError

from statsig_otel.exporters.exporter import Blocked, Delivered, Rejected, RetryLater
from statsig_otel.exporters.local.file import FileExporter, FileSettings

ROOT = Path(__file__).parents[3]
BLOCK = 1 << 16  # what the exporter reads at a time when it looks for the last line feed


def payload(title: str) -> bytes:
    """A record with this title as its body, as the queue holds it."""
    record = LogRecord(event_name="statsig.config_change", body=AnyValue(string_value=title))
    return ExportLogsServiceRequest(
        resource_logs=[ResourceLogs(scope_logs=[ScopeLogs(log_records=[record])])]
    ).SerializeToString()


def titles(path: Path) -> list[str]:
    """The bodies in the file. Fails where one line is not a whole one."""
    content = path.read_bytes()
    assert not content or content.endswith(b"\n")
    found = []
    for line in content.splitlines():
        for resource_logs in json.loads(line)["resourceLogs"]:
            for scope_logs in resource_logs["scopeLogs"]:
                found += [record["body"]["stringValue"] for record in scope_logs["logRecords"]]
    return found


def open_descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "changes.jsonl"


@pytest.fixture
def opened() -> Iterator[Callable[..., FileExporter]]:
    """Starts exporters, and shuts them down after the test."""
    exporters = []

    def start(path: Path, *, append: bool = True) -> FileExporter:
        exporter = FileExporter("file", FileSettings(path=path, append=append))
        exporter.start()
        exporters.append(exporter)
        return exporter

    yield start
    for exporter in exporters:
        exporter.shutdown()


# --- what is written -------------------------------------------------------------------------------------------


def test_a_line_for_each_record_of_a_batch(path: Path, opened: Callable[..., FileExporter]) -> None:
    """A batch is the joined bytes of its records; each becomes a complete ExportLogsServiceRequest on its line."""
    exporter = opened(path)
    assert exporter.send(payload("a") + payload("b\nc"), 2, 5) == Delivered()
    assert exporter.send(payload("d"), 1, 5) == Delivered()
    assert titles(path) == ["a", "b\nc", "d"]
    assert path.read_bytes().splitlines()[0] == (
        b'{"resourceLogs":[{"scopeLogs":[{"logRecords":['
        b'{"body":{"stringValue":"a"},"eventName":"statsig.config_change"}]}]}]}'
    )


def test_an_empty_payload_is_delivered_as_nothing(path: Path, opened: Callable[..., FileExporter]) -> None:
    assert opened(path).send(b"", 0, 5) == Delivered()
    assert path.read_bytes() == b""


def test_a_payload_that_cannot_be_read_is_rejected(path: Path, opened: Callable[..., FileExporter]) -> None:
    """And nothing of it is in the file."""
    exporter = opened(path)
    outcome = exporter.send(b"\xff\xff\xff", 1, 5)
    assert isinstance(outcome, Rejected)
    assert "ExportLogsServiceRequest" in outcome.reason
    assert path.read_bytes() == b""


def test_the_file_is_created_for_its_owner_only(path: Path, opened: Callable[..., FileExporter]) -> None:
    opened(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_mode_of_a_file_that_exists_stays(path: Path, opened: Callable[..., FileExporter]) -> None:
    path.touch()
    path.chmod(0o640)
    opened(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_restart_appends(path: Path, opened: Callable[..., FileExporter]) -> None:
    """What was delivered outlives a restart."""
    first = opened(path)
    first.send(payload("a"), 1, 5)
    first.shutdown()
    opened(path).send(payload("b"), 1, 5)
    assert titles(path) == ["a", "b"]


def test_without_append_a_start_empties_the_file(path: Path, opened: Callable[..., FileExporter]) -> None:
    """But not a rotation, and never a file that is not ours."""
    first = opened(path)
    first.send(payload("a"), 1, 5)
    first.shutdown()
    second = opened(path, append=False)
    second.send(payload("b"), 1, 5)
    assert titles(path) == ["b"]
    second.shutdown()
    path.write_bytes(b"letters\n")
    with pytest.raises(ValueError, match="something other"):
        opened(path, append=False)
    assert path.read_bytes() == b"letters\n"


def test_a_link_is_followed(tmp_path: Path, opened: Callable[..., FileExporter]) -> None:
    (tmp_path / "data").mkdir()
    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "data" / "real.jsonl")
    assert opened(link).send(payload("a"), 1, 5) == Delivered()
    assert link.is_symlink()
    assert titles(tmp_path / "data" / "real.jsonl") == ["a"]


def test_nothing_happens_before_start_and_after_shutdown(path: Path) -> None:
    exporter = FileExporter("file", FileSettings(path=path))
    exporter.shutdown()
    assert not path.exists()
    assert isinstance(exporter.send(payload("a"), 1, 5), RetryLater)
    exporter.start()
    exporter.shutdown()
    exporter.shutdown()
    assert isinstance(exporter.send(payload("a"), 1, 5), RetryLater)
    assert path.read_bytes() == b""


def test_shutdown_from_another_thread_tears_no_line(path: Path, opened: Callable[..., FileExporter]) -> None:
    """Sends that go on meanwhile either count and are whole, or are told to come again."""
    exporter = opened(path)
    outcomes = []

    def send() -> None:
        for number in range(10_000):
            outcomes.append(exporter.send(payload(f"{number}"), 1, 5))
            if not isinstance(outcomes[-1], Delivered):
                return

    sender = threading.Thread(target=send)
    sender.start()
    while len(outcomes) < 20:
        assert sender.is_alive()
    exporter.shutdown()
    sender.join(30)
    assert isinstance(outcomes[-1], RetryLater)
    assert titles(path) == [f"{number}" for number in range(len(outcomes) - 1)]


# --- on the disk before it counts ------------------------------------------------------------------------------


def test_every_byte_was_synced_before_delivered(
    path: Path, opened: Callable[..., FileExporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real fsync, watched: the last one before each Delivered saw the whole file; at creation, the directory."""
    synced: list[tuple[int, int]] = []
    real = os.fsync

    def watched(fd: int) -> None:
        real(fd)
        status = os.fstat(fd)
        synced.append((status.st_ino, status.st_size))

    monkeypatch.setattr(os, "fsync", watched)
    exporter = opened(path)
    assert [inode for inode, _ in synced] == [path.parent.stat().st_ino]
    for title in ("a", "b" * 300_000, "c"):
        assert exporter.send(payload(title), 1, 5) == Delivered()
        assert synced[-1] == (path.stat().st_ino, path.stat().st_size)
    exporter.shutdown()
    synced.clear()
    opened(path)
    assert synced == []  # nothing is new: neither the file nor its name


def test_a_failed_sync_is_never_delivered(
    path: Path, opened: Callable[..., FileExporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lines are cut away and written anew: a later fsync says nothing about pages that the kernel gave up."""
    exporter = opened(path)
    exporter.send(payload("a"), 1, 5)
    before = path.read_bytes()

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        outcome = exporter.send(payload("b"), 1, 5)
    assert isinstance(outcome, RetryLater)
    assert "Input/output error" in outcome.reason
    assert path.read_bytes() == before
    assert exporter.send(payload("b"), 1, 5) == Delivered()
    assert titles(path) == ["a", "b"]


def test_a_line_that_cannot_be_cut_away_at_once_is_cut_before_the_next(
    path: Path, opened: Callable[..., FileExporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails fsync and truncate alike: the exporter remembers, and repairs first."""
    exporter = opened(path)
    exporter.send(payload("a"), 1, 5)

    def failing(fd: int, length: int = 0) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        patch.setattr(os, "ftruncate", failing)
        for _ in range(3):
            assert isinstance(exporter.send(payload("b"), 1, 5), RetryLater)
    assert titles(path) == ["a", "b"]  # once, and not yet promised
    assert exporter.send(payload("c"), 1, 5) == Delivered()
    assert titles(path) == ["a", "c"]


def test_repairing_never_lengthens_a_file_that_was_emptied(
    path: Path, opened: Callable[..., FileExporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """logrotate's copytruncate between a failed write and the repair leaves no hole of NULs."""
    exporter = opened(path)
    exporter.send(payload("a"), 1, 5)

    def failing(fd: int, length: int = 0) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        patch.setattr(os, "ftruncate", failing)
        exporter.send(payload("b"), 1, 5)
    os.truncate(path, 0)
    assert exporter.send(payload("b"), 1, 5) == Delivered()
    assert titles(path) == ["b"]


# --- the kernel refuses: real EFBIG and ENOSPC ------------------------------------------------------------------

FULL = """
import resource, sys
from pathlib import Path
from statsig_otel.exporters.local.file import FileExporter, FileSettings
from statsig_otel.exporters.exporter import Delivered, RetryLater
from tests.exporters.local.test_file import payload, titles

path = Path(sys.argv[1])
exporter = FileExporter("file", FileSettings(path=path))
exporter.start()
assert exporter.send(payload("a"), 1, 5) == Delivered()
before = path.read_bytes()
{fill}
for _ in range(3):
    outcome = exporter.send(payload("b" * 200_000), 1, 5)
    assert isinstance(outcome, RetryLater) and {message!r} in outcome.reason, outcome
    assert path.read_bytes() == before
{free}
assert exporter.send(payload("b" * 200_000), 1, 5) == Delivered()
assert titles(path) == ["a", "b" * 200_000]
exporter.shutdown()
print("done")
"""


def run_child(code: str, *arguments: str, before: tuple[str, ...] = ()) -> None:
    child = subprocess.run(
        [*before, sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout == "done\n"


def test_a_file_size_limit_leaves_whole_lines(path: Path) -> None:
    """The kernel takes the first part of the line and refuses the rest; the part does not stay."""
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, ({}, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))"
    fill, free = limit.format(100_000), limit.format("resource.getrlimit(resource.RLIMIT_FSIZE)[1]")
    run_child(FULL.format(fill=fill, free=free, message="File too large"), str(path))


def _can_mount() -> bool:
    tool = shutil.which("unshare")
    if tool is None:
        return False
    trial = [tool, "--mount", "--map-root-user", "mount", "-t", "tmpfs", "none", tempfile.gettempdir()]
    return subprocess.run(trial, capture_output=True, timeout=30, check=False).returncode == 0


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    """A file system of 256 KiB that another file fills: later, and nothing torn; once there is room, delivered."""
    if not _can_mount():
        pytest.skip("no file system can be mounted here, not even in a namespace of its own")
    mount = tmp_path / "small"
    mount.mkdir()
    # The mount is in the child's own namespace and goes with it.
    script = 'mount -t tmpfs -o size=256k none "$0" && exec "$@"'
    fill = "ballast = path.with_name('ballast'); ballast.write_bytes(bytes(150_000))"
    run_child(
        FULL.format(fill=fill, free="ballast.unlink()", message="No space left on device"),
        str(mount / "changes.jsonl"),
        before=("unshare", "--mount", "--map-root-user", "sh", "-c", script, str(mount)),
    )


# --- torn lines -------------------------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=40), min_size=1, max_size=4), st.data())
def test_a_cut_anywhere_leaves_a_prefix_of_whole_lines(
    caplog: pytest.LogCaptureFixture, bodies: list[str], data: st.DataObject
) -> None:
    """Wherever a crash cut a valid file, opening it leaves whole lines, and the next write gives a valid file."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "changes.jsonl"
        writer = FileExporter("file", FileSettings(path=path))
        writer.start()
        writer.send(b"".join(map(payload, bodies)), len(bodies), 5)
        writer.shutdown()
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        os.truncate(path, cut)
        kept = whole[:cut].rfind(b"\n") + 1

        caplog.clear()
        exporter = FileExporter("file", FileSettings(path=path))
        exporter.start()
        assert path.read_bytes() == whole[:kept]
        warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert len(warnings) == (1 if kept < cut else 0)
        assert all(f"a partial line of {cut - kept} bytes" in warning for warning in warnings)
        assert exporter.send(payload("next"), 1, 5) == Delivered()
        exporter.shutdown()
        assert titles(path) == [*bodies[: whole[:kept].count(b"\n")], "next"]


@pytest.mark.parametrize("torn", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK - 1, 3 * BLOCK, 3 * BLOCK + 1])
def test_a_torn_line_longer_than_what_is_read_at_a_time(
    path: Path, opened: Callable[..., FileExporter], torn: int
) -> None:
    """The last line feed is found wherever it stands against the blocks that are read."""
    first = opened(path)
    first.send(payload("a"), 1, 5)
    first.shutdown()
    with path.open("ab") as file:
        file.write((b'{"resourceLogs":[' + b"x" * torn)[:torn])
    opened(path)
    assert titles(path) == ["a"]


def test_a_torn_first_line_of_many_blocks_goes_altogether(
    path: Path, opened: Callable[..., FileExporter], caplog: pytest.LogCaptureFixture
) -> None:
    """No line feed at all, but the beginning of one of our lines."""
    path.write_bytes(b'{"resourceLogs":[' + b"x" * 3 * BLOCK)
    size = path.stat().st_size
    opened(path)
    assert path.read_bytes() == b""
    assert f"removed a partial line of {size} bytes from the end of {path}" in caplog.text


@pytest.mark.parametrize(
    "content",
    [b"x", b"letters", b"letters\n", b"{}\n", b'{"resourceSpans":[]}\n', b"\n", b"\0" * 40],
)
def test_a_file_of_something_else_is_left_untouched(
    path: Path, opened: Callable[..., FileExporter], content: bytes
) -> None:
    """The error names the path and what to do."""
    path.write_bytes(content)
    with pytest.raises(ValueError, match="move it away, or name another path") as caught:
        opened(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content
    path.write_bytes(b"")
    opened(path)  # the refused file is not locked any more


WRITER = """
import sys
from pathlib import Path
from statsig_otel.exporters.local.file import FileExporter, FileSettings
from statsig_otel.exporters.exporter import Delivered
from tests.exporters.local.test_file import payload

exporter = FileExporter("file", FileSettings(path=Path(sys.argv[1])))
exporter.start()
number = int(sys.argv[2])
while True:
    assert exporter.send(payload(f"{number} " + "x" * 8_000_000), 1, 5) == Delivered()
    print(number, flush=True)
    number += 1
"""


def test_kill_9_while_writing(path: Path, opened: Callable[..., FileExporter]) -> None:
    """What was reported as delivered is in the file, once, in order; a torn line is gone; the lock went too."""
    delivered: list[int] = []
    torn = rounds = 0
    while torn < 3 and rounds < 15:  # three real torn lines; a busy machine may need more kills for them
        rounds += 1
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(len(delivered))],
            stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        assert child.stdout is not None
        delivered.append(int(child.stdout.readline()))
        # The kernel shows a write's progress in the size: the first sign of the next one is the moment.
        size = path.stat().st_size
        while path.stat().st_size == size:
            assert child.poll() is None
        child.send_signal(signal.SIGKILL)
        delivered += map(int, child.communicate(timeout=30)[0].split())
        assert child.returncode == -signal.SIGKILL
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            torn += file.read() != b"\n"

        exporter = opened(path)
        found = [int(title.split()[0]) for title in titles(path)]
        # One more line than reported can be there: killed between the sync and the report.
        assert found[: len(delivered)] == delivered == list(range(len(delivered)))
        assert len(found) <= len(delivered) + 1
        assert exporter.send(payload(f"{len(found)} after the crash"), 1, 5) == Delivered()
        exporter.shutdown()
        delivered = [*found, len(found)]
    assert torn, "no kill hit a write: the test shows nothing"


# --- one writer, regular files ----------------------------------------------------------------------------------


def test_a_second_process_is_refused(path: Path, opened: Callable[..., FileExporter]) -> None:
    """The error says what to do; with the first gone, the second may."""
    first = opened(path)
    code = (
        "import sys; from pathlib import Path\n"
        "from statsig_otel.exporters.local.file import FileExporter, FileSettings\n"
        "exporter = FileExporter('file', FileSettings(path=Path(sys.argv[1])))\n"
        "try: exporter.start()\n"
        "except OSError as error: print(error)\n"
        "else: print('open')\n"
    )

    def second() -> str:
        child = [sys.executable, "-c", code, str(path)]
        return subprocess.run(child, capture_output=True, text=True, timeout=60, check=True, cwd=ROOT).stdout

    assert second() == (
        f"{path} is locked: another process or another file exporter writes to it; "
        "stop that writer, or give this exporter another path\n"
    )
    assert first.send(payload("a"), 1, 5) == Delivered()
    first.shutdown()
    assert second() == "open\n"


def test_two_exporters_of_one_process_cannot_share_a_file(path: Path, opened: Callable[..., FileExporter]) -> None:
    """And the refused one leaves no descriptor open."""
    opened(path)
    before = open_descriptors()
    with pytest.raises(OSError, match="another file exporter"):
        opened(path)
    assert open_descriptors() == before


def test_a_directory_that_does_not_exist(tmp_path: Path, opened: Callable[..., FileExporter]) -> None:
    with pytest.raises(FileNotFoundError, match=r"the directory .*missing does not exist; create it"):
        opened(tmp_path / "missing" / "changes.jsonl")


@pytest.mark.parametrize("kind", ["fifo", "directory", "/dev/null", "/dev/stdout"])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, opened: Callable[..., FileExporter], kind: str) -> None:
    """At once, without waiting for a fifo's reader, and with a hint."""
    path = Path(kind) if kind.startswith("/") else tmp_path / kind
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    with pytest.raises(ValueError, match="use the debug exporter") as caught:
        opened(path)
    assert str(path) in str(caught.value)


def test_a_file_of_somebody_else() -> None:
    """No permission is an OSError at the start that names the path."""
    code = (
        "import os, sys; from pathlib import Path\n"
        "from statsig_otel.exporters.local.file import FileExporter, FileSettings\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"
        "try: FileExporter('file', FileSettings(path=Path(sys.argv[1]))).start()\n"
        "except PermissionError as error: assert sys.argv[2] in str(error); print('done')\n"
    )
    with tempfile.TemporaryDirectory() as directory:  # tmp_path lies in directories that only their owner may enter
        Path(directory).chmod(0o755)
        path = Path(directory) / "changes.jsonl"
        path.touch(mode=0o400)
        run_child(code, str(path), directory)


# --- rotation ---------------------------------------------------------------------------------------------------


def test_a_renamed_file_is_left_and_a_new_one_opened(path: Path, opened: Callable[..., FileExporter]) -> None:
    """logrotate without `create`: the new file is made, for its owner only, and locked."""
    exporter = opened(path)
    exporter.send(payload("a"), 1, 5)
    rotated = path.rename(path.with_suffix(".1"))
    assert exporter.send(payload("b"), 1, 5) == Delivered()
    assert (titles(rotated), titles(path)) == (["a"], ["b"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(OSError, match="locked"):
        opened(path)


def test_a_relative_path_is_that_of_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that goes to another directory has rotated nothing."""
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    exporter = FileExporter("file", FileSettings(path=Path("changes.jsonl")))
    exporter.start()
    monkeypatch.chdir(tmp_path / "there")
    assert exporter.send(b"", count=0, timeout=5) == Delivered()
    exporter.shutdown()
    assert list((tmp_path / "there").iterdir()) == []


def test_a_file_that_logrotate_made_is_used(path: Path, opened: Callable[..., FileExporter]) -> None:
    """logrotate with `create`."""
    exporter = opened(path)
    exporter.send(payload("a"), 1, 5)
    path.rename(path.with_suffix(".1"))
    path.touch(mode=0o640)
    inode = path.stat().st_ino
    assert exporter.send(payload("b"), 1, 5) == Delivered()
    assert path.stat().st_ino == inode
    assert titles(path) == ["b"]


def test_nothing_goes_to_a_removed_file(path: Path, opened: Callable[..., FileExporter]) -> None:
    exporter = opened(path)
    exporter.send(payload("a"), 1, 5)
    path.unlink()
    assert exporter.send(payload("b"), 1, 5) == Delivered()
    assert titles(path) == ["b"]


def test_no_descriptor_stays_open_after_rotations(path: Path, opened: Callable[..., FileExporter]) -> None:
    exporter = opened(path)
    exporter.send(payload("a"), 1, 5)
    before = open_descriptors()
    for number in range(20):
        path.rename(path.with_suffix(f".{number}"))
        assert exporter.send(payload("b"), 1, 5) == Delivered()
    assert open_descriptors() == before


def test_a_rotation_in_the_middle_of_a_write_loses_nothing(
    path: Path, opened: Callable[..., FileExporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rotated file may be copied already and removed next: the batch is asked for again, for the new file."""
    exporter = opened(path)
    real = os.fsync

    def rotating(fd: int) -> None:
        real(fd)
        path.rename(path.with_suffix(".1"))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", rotating)
        outcome = exporter.send(payload("a"), 1, 5)
    assert isinstance(outcome, RetryLater)
    assert "renamed or removed" in outcome.reason
    assert exporter.send(payload("a"), 1, 5) == Delivered()
    assert titles(path) == ["a"]


def test_after_a_rotation_a_file_of_something_else_blocks(path: Path, opened: Callable[..., FileExporter]) -> None:
    """It is left untouched; once it is moved away, sending goes on."""
    exporter = opened(path)
    exporter.send(payload("a"), 1, 5)
    path.unlink()
    path.write_bytes(b"letters\n")
    outcome = exporter.send(payload("b"), 1, 5)
    assert isinstance(outcome, Blocked)
    assert "move it away" in outcome.reason
    assert path.read_bytes() == b"letters\n"
    path.unlink()
    assert exporter.send(payload("b"), 1, 5) == Delivered()
    assert titles(path) == ["b"]


def test_after_a_rotation_a_locked_file_or_a_missing_directory_is_waited_for(
    tmp_path: Path, opened: Callable[..., FileExporter]
) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    path = directory / "changes.jsonl"
    exporter = opened(path)
    path.unlink()
    other = opened(path)
    assert "locked" in str(exporter.send(payload("a"), 1, 5))
    other.shutdown()
    shutil.rmtree(directory)
    outcome = exporter.send(payload("a"), 1, 5)
    assert isinstance(outcome, RetryLater)
    assert "does not exist" in outcome.reason
    directory.mkdir()
    assert exporter.send(payload("a"), 1, 5) == Delivered()
    assert titles(path) == ["a"]


# --- settings ---------------------------------------------------------------------------------------------------


def test_settings_defaults() -> None:
    checked = FileSettings.model_validate({"path": "/var/log/changes.jsonl"})
    assert checked == FileSettings(path=Path("/var/log/changes.jsonl"), append=True, format="json")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "Field required"),
        ({"path": ""}, "is empty"),
        ({"path": "/"}, "must name a file"),
        ({"path": "x", "format": "proto"}, "proto is not supported; leave the key out"),
        ({"path": "x", "format": "xml"}, "should be 'json'"),
        ({"path": "x", "rotation": {"max_megabytes": 10}}, "Extra inputs are not permitted"),
        ({"path": "x", "compression": "zstd"}, "Extra inputs are not permitted"),
        ({"path": "x", "append": "perhaps"}, "must be true or false"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, object], message: str) -> None:
    """What the Collector's exporter knows and this one does not is an error, never ignored."""
    with pytest.raises(ValidationError, match=message):
        FileSettings.model_validate(settings)
