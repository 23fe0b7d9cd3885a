"""Feeds a reader of requests as a connection does."""

from collections.abc import Sequence

from statsig_otel.plugin.server.reader import RequestReader


def read(pieces: Sequence[bytes]) -> tuple[RequestReader, bytes, bytes]:
    """Feed pieces as a connection does; the reader, the body, and what was left over."""
    reader, body, left = RequestReader(), b"", b""
    for piece in pieces:
        rest = left + piece
        while rest and not reader.is_complete:
            before, rest = rest, reader.feed(rest)
            assert len(rest) < len(before) or not rest, "each turn reads something"
            body += reader.body
            reader.body.clear()
        left = rest
    return reader, body, left
