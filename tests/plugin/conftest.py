"""The log of the tests of the plugin."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _own_log() -> Iterator[None]:
    """A command that configures the log of its process leaves the tests behind it theirs."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
