"""The space that is set apart for a full disk, and what may be in the way of giving it back."""

import errno
import os
from pathlib import Path

import pytest

from statsig_otel.exporters.queue.reserve import Reserve
from tests.exporters.queue.helpers import errors


@pytest.fixture
def reserve(tmp_path: Path) -> Reserve:
    return Reserve(tmp_path / "reserve")


def test_it_takes_space_also_where_none_can_be_allocated(
    tmp_path: Path, reserve: Reserve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with musl on a file system without fallocate, and on macOS."""

    def unsupported(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    reserve.keep(100_000, min_free=0)
    found = (tmp_path / "reserve").stat()
    assert found.st_size == reserve.size == 100_000
    assert found.st_blocks * 512 >= 100_000
    assert reserve.give()
    assert not reserve.give()


def test_if_it_can_not_be_deleted_it_is_emptied_once(
    tmp_path: Path, reserve: Reserve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on btrfs and ZFS, which need space to delete a file."""

    def full(self: Path, *, missing_ok: bool = False) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    reserve.keep(100_000, min_free=0)
    monkeypatch.setattr(Path, "unlink", full)
    assert reserve.give()
    assert (tmp_path / "reserve").stat().st_blocks == 0
    assert not reserve.give()
    assert not reserve.give()
    assert errors(caplog) == [
        f"{tmp_path / 'reserve'} can't be deleted, so its space can't be used: No space left on device"
    ]


@pytest.mark.parametrize("kind", ["directory", "pipe", "link"])
def test_what_somebody_else_put_in_its_place_is_no_space(tmp_path: Path, reserve: Reserve, kind: str) -> None:
    file, victim = tmp_path / "reserve", tmp_path / "victim"
    victim.write_text("of somebody else")
    if kind == "directory":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(victim)
    reserve.keep(1 << 20, min_free=0)
    reserve.give()
    assert victim.read_text() == "of somebody else"
    assert file.is_dir() is (kind == "directory")
