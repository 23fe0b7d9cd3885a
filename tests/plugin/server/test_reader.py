"""The reader of requests: every request whole, in single bytes and in random pieces, and what it refuses."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statsig_otel.plugin.server.reader import (
    CHUNKS_A_TURN,
    MAX_CHUNK_HEADER,
    MAX_FIELDS,
    MAX_HEADER_BYTES,
    BadRequestError,
    RequestReader,
)
from tests.looped import looped
from tests.plugin.server.reading import read

GET = b"GET /a?b=c HTTP/1.1\r\nHost: test\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n%s\r\n%s"
CHUNKED = b"POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n"
WHOLE = [
    (GET, b""),
    (b"\r\n" + GET, b""),
    (POST % (5, b"", b"hello"), b"hello"),
    (POST % (0, b"expect: 100-continue\r\n", b""), b""),
    (b"POST / HTTP/1.1\r\nhost: test \r\ntransfer-encoding: chunked\t\r\n\r\n0\r\n\r\n", b""),
    (POST % (2, b"connection: upgrade\r\nupgrade: h2c\r\n", b"hi"), b"hi"),
    (CHUNKED + b"0\r\n\r\n", b""),
    (CHUNKED + b"5\r\nhello\r\n1;a=b ;c\r\n!\r\n0\r\nx: y\r\n\r\n", b"hello!"),
    (CHUNKED + b"0A ; a\r\n0123456789\r\n00\r\n\r\n", b"0123456789"),
    (CHUNKED + b"1\r\nx\r\n" * 1000 + b"0\r\n\r\n", b"x" * 1000),
]


@looped(("data", "body"), WHOLE)
def test_a_request_is_the_same_whole_and_in_pieces_and_nothing_is_read_behind_it(data: bytes, body: bytes) -> None:
    single = [data[at : at + 1] for at in range(len(data))]
    for pieces in ([data], single, [*single[:-1], single[-1] + GET], [data + GET]):
        reader, found, rest = read(pieces)
        assert reader.is_complete
        assert found == body
        assert rest == b"".join(pieces)[len(data) :]
    reader, _, _ = read(single[:-1])
    assert not reader.is_complete


@given(st.sampled_from(WHOLE), st.lists(st.integers(0, 400), max_size=8))
def test_where_the_pieces_are_cut_makes_no_difference(example: tuple[bytes, bytes], cuts: list[int]) -> None:
    data, body = example
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    reader, found, rest = read([data[a:b] for a, b in itertools.pairwise(edges)])
    assert (reader.is_complete, found, rest) == (True, body, b"")


@given(
    st.lists(
        st.sampled_from(
            [
                *(b"POST / HTTP/1.1\r\n", b"host: a\r\n", b"content-length: 3\r\n", b"transfer-encoding: chunked\r\n"),
                *(
                    b"\r\n",
                    b"3\r\nabc",
                    b"\r\n0\r\n",
                    b"\r",
                    b"\n",
                    b" ",
                    b"\t",
                    b":",
                    b"0",
                    b"f",
                    b";",
                    b"\0",
                    b"\xff",
                ),
            ]
        ),
        max_size=12,
    ).map(b"".join)
    | st.binary(max_size=100)
)
def test_any_bytes_are_a_request_or_a_refusal_and_in_pieces_the_same(data: bytes) -> None:
    def outcome(pieces: list[bytes]) -> object:
        try:
            reader, body, rest = read(pieces)
        except BadRequestError:
            return "refused"
        return (body, rest, reader.head) if reader.is_complete else "incomplete"

    assert outcome([data]) == outcome([data[at : at + 1] for at in range(len(data))])


def test_a_head_says_what_the_connection_needs_to_know() -> None:
    reader = RequestReader()
    reader.feed(
        b"PUT http://test/a%20b?c HTTP/1.1\r\nHost: test\r\nX-Two: a \t\r\nx-two:\tb\r\n"
        b"Connection: x, Close\r\nExpect: 100-Continue\r\nContent-Length: 3\r\n\r\n"
    )
    head = reader.head
    assert head is not None
    assert (head.method, head.target, head.version, head.length) == ("PUT", b"/a%20b?c", "1.1", 3)
    assert [value for name, value in head.fields if name == b"x-two"] == [b"a", b"b"]
    assert not head.keep_alive
    assert head.expects_continue


@looped(
    ("url", "target"),
    [
        (b"http://test/a?b=/c", b"/a?b=/c"),
        (b"http://test?/a", b"/?/a"),
        (b"http://test", b"/"),
        (b"https://user@[::1]:80/a://b", b"/a://b"),
        (b"/a?http://test/b", b"/a?http://test/b"),
    ],
)
def test_the_path_of_an_absolute_url_begins_behind_its_host(url: bytes, target: bytes) -> None:
    reader = RequestReader()
    reader.feed(b"GET " + url + b" HTTP/1.1\r\nHost: test\r\n\r\n")
    assert reader.head is not None
    assert reader.head.target == target


@looped(
    "host",
    [
        b"",
        b"test",
        b"10.0.0.1:8080",
        b"[2001:db8::1]:80",
        b"a_b-c.example.",
        b"xn--bcher-kva.example",
        b"[fe80::1%25eth0]",
    ],
)
def test_whatever_may_be_a_host_is_one(host: bytes) -> None:
    """A load balancer's check may have an empty one (RFC 9112, 3.2)."""
    reader = RequestReader()
    reader.feed(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
    assert reader.head is not None


def _refusal(data: bytes) -> BadRequestError:
    with pytest.raises(BadRequestError) as caught:
        read([data])
    return caught.value


@looped(
    ("data", "status", "kind"),
    [
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", 400, "tls"),
        (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + GET, 400, "proxy_protocol"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", 400, "proxy_protocol"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "http2"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", 400, "not_http"),
        (b"CONNECT test:443 HTTP/1.1\r\nhost: test\r\n\r\n", 501, "connect"),
        (b"GET / HTTP/1.1\r\nhost: test\r\n" + b"a: b\r\n" * MAX_FIELDS + b"\r\n", 431, "header_fields"),
        (b"GET / HTTP/1.1\r\nhost: test\r\na: " + b"b" * MAX_HEADER_BYTES, 431, "header_size"),
        (CHUNKED + b"x", 400, "chunked"),
        (CHUNKED + b"1 \r\nx\r\n0\r\n\r\n", 400, "chunked"),
        (CHUNKED + b"-1\r\n", 400, "chunked"),
        (CHUNKED + b"1\nx\n0\n\n", 400, "chunked"),
        (CHUNKED + b"1\r\nxx\r\n0\r\n\r\n", 400, "chunked"),
        (CHUNKED + b"1;" + b"a" * MAX_HEADER_BYTES, 400, "chunked"),
        (CHUNKED + b"1;" + b"a" * MAX_HEADER_BYTES + b"\r\nx\r\n0\r\n\r\n", 400, "chunked"),
        (CHUNKED + b"1\r\nx\r\n" * MAX_HEADER_BYTES, 400, "chunked"),
        (CHUNKED + b"0\r\n x: folded\r\n\r\n", 400, "chunked"),
        (CHUNKED + b"0\r\nx: " + b"y" * MAX_HEADER_BYTES + b"\r\n\r\n", 400, "chunked"),
        (CHUNKED + b"0\r\n" + b"x: y\r\n" * (MAX_FIELDS + 1) + b"\r\n", 400, "chunked"),
    ],
)
def test_what_it_refuses_and_what_it_takes_it_for(data: bytes, status: int, kind: str) -> None:
    error = _refusal(data)
    assert (error.status, error.kind) == (status, kind)
    assert error.explanation


def test_small_parts_cost_no_more_the_longer_the_request_is_already() -> None:
    """Else a client that sends single bytes takes all of the processor. The bound is a hundred times what it takes."""
    long_target = b"POST /" + b"a" * 60_000 + b" HTTP/1.1\r\nhost: test\r\nx: "
    for begin, parts in (
        (b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 99999\r\n\r\n", 20_000),
        (long_target, 5000),
    ):
        reader = RequestReader()
        reader.feed(begin)
        before = time.thread_time()
        for _ in range(parts):
            reader.feed(b"y")
        assert time.thread_time() - before < 0.5


def test_where_a_chunk_header_is_cut_makes_no_difference_to_its_limit() -> None:
    for size, is_read in ((MAX_CHUNK_HEADER, True), (MAX_CHUNK_HEADER + 1, False)):
        header = b"1;" + b"a" * (size - 4) + b"\r\n"
        for parts in ([header], [header[:-1], header[-1:]], [header[at : at + 1] for at in range(size)]):
            reader = RequestReader()
            reader.feed(CHUNKED)
            try:
                for part in parts:
                    reader.feed(part)
            except BadRequestError:
                assert not is_read
            else:
                assert is_read


@pytest.mark.parametrize("more", [0, 1])
def test_trailers_have_the_same_largest_size_wherever_they_are_cut(more: int) -> None:
    data = CHUNKED + b"0\r\nx:" + b"a" * (MAX_HEADER_BYTES - len(b"x:\r\n") + more) + b"\r\n\r\n"
    for pieces in ([data], *([data[:-cut], data[-cut:]] for cut in (1, 2, 3, 4, 5))):
        if more:
            with pytest.raises(BadRequestError, match="the trailers have more than"):
                read(pieces)
        else:
            assert read(pieces)[0].is_complete


def test_one_turn_handles_a_limited_number_of_chunks() -> None:
    reader = RequestReader()
    many = b"1\r\nx\r\n" * 4 * CHUNKS_A_TURN
    rest = reader.feed(CHUNKED + many)
    assert len(reader.body) == CHUNKS_A_TURN - 1  # of the last one only the header
    assert many.endswith(rest)
    assert len(rest) > len(many) / 2


def test_small_chunks_with_enough_in_them_are_read() -> None:
    reader, body, _ = read([CHUNKED + b"8\r\n01234567\r\n" * 50_000 + b"0\r\n\r\n"])
    assert reader.is_complete
    assert len(body) == 400_000
