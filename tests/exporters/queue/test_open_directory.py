"""A directory that is owned with its writer: whatever goes wrong, it is given up again."""

import threading
from pathlib import Path

import pytest

from statsig_otel.exporters.queue.directory import QueueDirectory
from statsig_otel.exporters.queue.open_directory import OpenDirectory
from statsig_otel.exporters.queue.writer import Writer


def test_where_no_thread_starts_the_directory_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def session() -> OpenDirectory:
        writer = Writer(tmp_path / "queue.db", prepare=lambda _: None, tidy=lambda _, __: False)
        return OpenDirectory(QueueDirectory(tmp_path), writer)

    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("no thread can be started")

    failing = session()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError, match="no thread"):
            failing.open()
    another = session()
    another.open()
    another.close()
    failing.open()
    failing.close()
