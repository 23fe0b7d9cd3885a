"""The steps of attacks on the log: its length, and what somebody on the internet writes into it."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tests.attacks.attack import Serve
from tests.attacks.steps import head
from tests.plugin.http_client import request

_PACKAGE: Final = logging.getLogger("statsig_otel")
_INTAKE: Final = "statsig_otel.plugin.receiver.intake"
_PATHS: Final = "statsig_otel.plugin.receiver.responses"

_INTERVAL: Final = 10.0
_SHOWN: Final = 100


class _Keeping(logging.Handler):
    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__()
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)


@contextmanager
def logging_to(records: list[logging.LogRecord]) -> Iterator[None]:
    """Keep what the package logs during the block, from warnings on."""
    handler = _Keeping(records)
    level, propagate = _PACKAGE.level, _PACKAGE.propagate
    _PACKAGE.addHandler(handler)
    _PACKAGE.setLevel(logging.WARNING)
    _PACKAGE.propagate = False  # `mutant.py` takes a line on standard error for a fault
    try:
        yield
    finally:
        _PACKAGE.removeHandler(handler)
        _PACKAGE.setLevel(level)
        _PACKAGE.propagate = propagate


def many_refusals(serve: Serve) -> None:
    """Of two kinds, and of a third one that other servers answer. Each has a logger of its own."""
    records: list[logging.LogRecord] = []
    with logging_to(records), serve() as site:
        began = time.monotonic()
        for number in range(20):
            for data in (request(), request(path=f"/{number}"), *([b"nonsense\r\n\r\n"] if site.ends else ())):
                assert site.answer(data).split()[1][:1] == b"4"
        most = 1 + int((time.monotonic() - began) / _INTERVAL)
    lines = Counter(record.name for record in records)
    assert {_INTAKE, _PATHS} <= lines.keys()
    assert max(lines.values()) <= most, lines


def hostile_paths(serve: Serve) -> None:
    """werkzeug takes control characters in a path. The other servers refuse them before a receiver sees the path."""
    for target, written in ((b"/" + b"a" * 300, "/" + "a" * (_SHOWN - 1)), (b"/\x1b[2J\x9b", "/\\x1b[2J")):
        records: list[logging.LogRecord] = []
        with logging_to(records), serve() as site:
            status = site.answer(head(target=target)).split()[1]
        paths = [record.getMessage().split()[3] for record in records if record.name == _PATHS]
        assert (status, len(paths)) in ((b"404", 1), (b"400", 0))
        for path in paths:
            assert path.isprintable()
            assert path.startswith(written)
            assert len(path) <= _SHOWN
