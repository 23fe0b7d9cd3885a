"""Counts the calls of functions with which requests are handled: a count does not depend on the load of the machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final
from unittest.mock import patch

from falcon import request
from falcon.asgi import request as asgi_request
from falcon.uri import parse_query_string

from tests.attacks.attack import Serve
from tests.plugin.http_client import exchange

_PARTS: Final = ("/statsig_otel/plugin/receiver/", "/statsig_otel/plugin/server/reader.py", "/falcon/")
"""What handles a request, and what of the standard library it calls. Servers decode the path, too: the package's own
lets it have at most 8 KiB."""

_LIBRARY: Final = "/urllib/"

MOST: Final = 300
"""As many more calls as for a tiny request are few, for tens of thousands of bytes."""


@contextmanager
def counting() -> Iterator[Callable[[], int]]:
    """Count the calls in threads that are started during the block."""
    calls = 0

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        if event in ("call", "c_call"):
            calls += any(part in _responsible(frame) for part in _PARTS)

    threading.setprofile(count)
    try:
        yield lambda: calls
    finally:
        threading.setprofile(None)


def _responsible(frame: FrameType | None) -> str:
    """The file from which a library was called, or the frame's own one."""
    while frame is not None and _LIBRARY in frame.f_code.co_filename:
        frame = frame.f_back
    return "" if frame is None else frame.f_code.co_filename


def in_few_steps(*requests: tuple[bytes, int], tiny: bytes) -> Callable[[Serve], None]:
    """Sends requests. Each has to be answered with its status, and with hardly more calls than a tiny one."""

    def act(serve: Serve) -> None:
        with counting() as calls, serve() as site:
            exchange(site.address, tiny)  # the first one is special
            counts, statuses = [], []
            for data in (tiny, *(data for data, _ in requests)):
                before = calls()
                statuses.append(exchange(site.address, data).status)
                counts.append(calls() - before)
            assert statuses[1:] == [status for _, status in requests]
            first, *others = counts
            for (data, _), count in zip(requests, others, strict=True):
                assert count <= first + MOST, f"{data[:60]!r}: {count} calls, and {first} for a tiny request"

    return act


def without_parsed_query(data: bytes) -> Callable[[Serve], None]:
    """Sends a request without a signature, whose query Falcon must not parse.

    Falcon's parser is compiled, so its calls are not seen.
    """

    def act(serve: Serve) -> None:
        with (
            patch.object(request, "parse_query_string", side_effect=parse_query_string) as under_wsgi,
            patch.object(asgi_request, "parse_query_string", side_effect=parse_query_string) as under_asgi,
            serve() as site,
        ):
            assert exchange(site.address, data).status == 401
            assert not under_wsgi.called
            assert not under_asgi.called

    return act
