"""A writer that tidies up sooner, for the tests that wait until it does."""

from collections.abc import Iterator

import pytest

from statsig_otel.exporters.queue import writer


@pytest.fixture
def soon_idle() -> Iterator[None]:
    """Otherwise the writer waits for a second without a job."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "_IDLE", 0.1)
        yield
