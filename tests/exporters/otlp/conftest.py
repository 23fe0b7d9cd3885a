"""A certificate authority for the tests of the exporters."""

from collections.abc import Iterator

import pytest

from tests.peers.certs import Authority
from tests.peers.otlp_servers import (
    HttpSink,
)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def sink() -> Iterator[HttpSink]:
    with HttpSink() as running:
        yield running
