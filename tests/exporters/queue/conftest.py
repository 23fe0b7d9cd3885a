"""Writers that tidy up sooner, or keep what is committed in the log."""

from collections.abc import Iterator

import pytest

from statsig_otel.exporters.queue import open_files, writer


@pytest.fixture
def soon_idle() -> Iterator[None]:
    """Otherwise the writer waits for a second without a job."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "_IDLE", 0.1)
        yield


@pytest.fixture
def unfolded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed stays in the log, as it does while webhooks come."""
    monkeypatch.setattr(open_files, "fold", lambda _: False)
