"""Backends over each protocol for the tests of delivery."""

from collections.abc import Iterator

import pytest

from tests.exporters.delivery.helpers import (
    Backend,
)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """grpcio honours the environment's proxies, for loopback too."""
    monkeypatch.setenv("no_grpc_proxy", "localhost,127.0.0.1")


@pytest.fixture(params=["http", "grpc"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """A backend over each of the protocols."""
    with Backend(request.param) as running:
        yield running


@pytest.fixture
def http() -> Iterator[Backend]:
    """A backend, where the protocol makes no difference."""
    with Backend() as running:
        yield running
