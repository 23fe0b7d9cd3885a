"""The file exporter when its file is renamed, removed or replaced under it."""

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from statsig_otel.exporters.exporter import Blocked, Delivered, RetryLater
from statsig_otel.exporters.local.file import FileExporter, FileSettings
from tests.exporters.local.files import open_descriptors, payload, titles


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
