"""A directory that is owned with its database: whatever goes wrong, it is given up again."""

import threading
from pathlib import Path

import pytest

from statsig_otel.exporters.queue.database import Database


def test_where_no_thread_starts_the_directory_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("no thread can be started")

    failing = Database(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError, match="no thread"):
            failing.open()
    another = Database(tmp_path)
    another.open()
    another.close()
    failing.open()
    failing.close()
