"""The file exporter against real faults of the kernel: failed syncs, full disks, torn lines, kill -9."""

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from statsig_otel.exporters.exporter import Delivered, RetryLater
from statsig_otel.exporters.local.file import FileExporter, FileSettings, check_path
from tests.exporters.local.files import ROOT, payload, run_child, titles

BLOCK = 1 << 16  # what the exporter reads at a time when it looks for the last line feed


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


@contextmanager
def failing(*names: str) -> Iterator[None]:
    """Calls of these functions of `os` fail, as on a broken disk."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(os, name, fail)
        yield


def test_a_failed_sync_is_never_delivered(path: Path, opened: Callable[..., FileExporter]) -> None:
    """Its lines are cut away and written anew: a later fsync says nothing about pages that the kernel gave up."""
    exporter = opened(path)
    exporter.send(payload("a"), 1, 5)
    before = path.read_bytes()

    with failing("fsync"):
        outcome = exporter.send(payload("b"), 1, 5)
    assert isinstance(outcome, RetryLater)
    assert "Input/output error" in outcome.reason
    assert path.read_bytes() == before
    assert exporter.send(payload("b"), 1, 5) == Delivered()
    assert titles(path) == ["a", "b"]


def test_a_line_that_cannot_be_cut_away_at_once_is_cut_before_the_next(
    path: Path, opened: Callable[..., FileExporter]
) -> None:
    """A disk that fails fsync and truncate alike: the exporter remembers, and repairs first."""
    exporter = opened(path)
    exporter.send(payload("a"), 1, 5)

    with failing("fsync", "ftruncate"):
        for _ in range(3):
            assert isinstance(exporter.send(payload("b"), 1, 5), RetryLater)
    assert titles(path) == ["a", "b"]  # once, and not yet promised
    assert exporter.send(payload("c"), 1, 5) == Delivered()
    assert titles(path) == ["a", "c"]


def test_repairing_never_lengthens_a_file_that_was_emptied(path: Path, opened: Callable[..., FileExporter]) -> None:
    """logrotate's copytruncate between a failed write and the repair leaves no hole of NULs."""
    exporter = opened(path)
    exporter.send(payload("a"), 1, 5)

    with failing("fsync", "ftruncate"):
        exporter.send(payload("b"), 1, 5)
    os.truncate(path, 0)
    assert exporter.send(payload("b"), 1, 5) == Delivered()
    assert titles(path) == ["b"]


FULL = """
import resource, sys
from pathlib import Path
from statsig_otel.exporters.local.file import FileExporter, FileSettings
from statsig_otel.exporters.exporter import Delivered, RetryLater
from tests.exporters.local.files import payload, titles

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


def test_a_first_write_that_a_power_failure_left_as_nuls_is_no_obstacle(
    path: Path, opened: Callable[..., FileExporter]
) -> None:
    """It never counted as delivered. A whole line behind it stays: it may be one that did, if the disk is damaged."""
    whole = b'{"resourceLogs":[]}\n'
    for content, kept in {
        bytes(40): b"",
        bytes(3 * BLOCK): b"",
        bytes(512) + '"é"}]}'.encode(): b"",
        bytes(512) + b'"}]}\n' + whole + whole[:5]: bytes(512) + b'"}]}\n' + whole,
    }.items():
        path.write_bytes(content)
        assert check_path(path) is None
        exporter = opened(path)
        assert path.read_bytes() == kept
        assert exporter.send(payload("a"), 1, 5) == Delivered()
        exporter.shutdown()
        assert path.read_bytes().startswith(kept + b'{"resourceLogs":[{')
        opened(path).shutdown()


@pytest.mark.parametrize(
    "content",
    [b"x", b"letters", b"letters\n", b"{}\n", b'{"resourceSpans":[]}\n', b"\n", bytes(BLOCK) + b"\1a disk\n"],
)
def test_a_file_of_something_else_is_left_untouched(
    path: Path, opened: Callable[..., FileExporter], content: bytes
) -> None:
    """The error names the path and what to do."""
    path.write_bytes(content)
    with pytest.raises(ValueError, match="move it away, or name another path") as caught:
        opened(path)
    assert str(path) in str(caught.value)
    assert "contains something other" in str(check_path(path))
    assert path.read_bytes() == content
    path.write_bytes(b"")
    opened(path)  # the refused file is not locked any more


WRITER = """
import sys
from pathlib import Path
from statsig_otel.exporters.local.file import FileExporter, FileSettings
from statsig_otel.exporters.exporter import Delivered
from tests.exporters.local.files import payload

exporter = FileExporter("file", FileSettings(path=Path(sys.argv[1])))
exporter.start()
number = int(sys.argv[2])
while True:
    assert exporter.send(payload(f"{number} " + "x" * 8_000_000), 1, 5) == Delivered()
    print(number, flush=True)
    number += 1
"""


@pytest.mark.slow
def test_kill_9_while_writing(path: Path, opened: Callable[..., FileExporter]) -> None:
    """What was reported as delivered is in the file, once, in order; a torn line is gone; the lock went too."""
    delivered: list[int] = []
    torn = rounds = 0
    while torn < 5 and rounds < 25:  # a busy machine may need more kills for a real torn line
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
