"""Started file exporters."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from statsig_otel.exporters.local.file import FileExporter, FileSettings


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
