"""What the fuzzer found stays true, without the fuzzer: of each target the shortest inputs in the quick suite."""

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import Any, Final
from unittest.mock import patch

import pytest

from statsig_otel.plugin.webhook.body import ParsedBody, parse
from tests.fuzz import configuration, framing, payload, run
from tests.fuzz.control_socket import check_answer
from tests.fuzz.payload import check_against_the_library, check_readers
from tests.fuzz.queue_file import check_delivered, edited
from tests.fuzz.run import Report, add_result
from tests.fuzz.targets import TARGETS, code, kept, target

QUICK: Final = 30
"""Inputs of a target that the quick tests try. `make fuzz` begins with all of them."""


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", TARGETS)
def test_the_inputs_that_are_kept(name: str) -> None:
    """The shortest of them: they take a second or two together."""
    inputs = kept(name)[:QUICK]
    assert len(inputs) >= 10
    check_all(name, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TARGETS if len(kept(name)) > QUICK])
def test_the_longer_inputs_that_are_kept(name: str) -> None:
    check_all(name, kept(name)[QUICK:])


def check_all(name: str, inputs: Iterable[bytes]) -> None:
    with patch.object(target(name), "SHARE", 1, create=True), target(name).checking() as check:
        for one in inputs:
            try:
                check(one)
            except Exception as error:
                error.add_note(f"{name}: {one!r}")
                raise


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_is_longer_than_the_fuzzer_makes_them(name: str) -> None:
    assert all(len(one) <= target(name).LONGEST for one in kept(name))


def test_the_edits_of_a_file() -> None:
    """Each operation does what it says: an input that changes nothing would check nothing."""
    files = {"queue.db": bytes([1, 2] * 2048 + [3, 4] * 2048)}
    for operation in range(6):
        found = edited(files, bytes((operation, 0, 0, 0x10, 1, 0xAA)))
        assert found != files, operation
    assert edited(files, b"\0\0\0\1\2ab")["queue.db"][4:6] == b"ab"
    assert len(edited(files, b"\1\0\0\1\0")["queue.db"]) == 4
    assert edited(files, b"\3\0\0\0\0") == {}


def test_a_changed_configuration_stays_json() -> None:
    random = Random(1)
    changed = {configuration.mutated(one, random, marked) for one in (*configuration.GOOD, b"a: 1") for _ in range(50)}
    as_json = {one for one in changed if MARK not in one[-1:]}
    assert len(as_json) > 100
    for one in as_json:
        assert [json.loads(part) for part in one.split(b"\0")]
    assert any(MARK in one for one in as_json), "no string was changed"


def test_a_changed_body_has_its_shape_or_other_bytes() -> None:
    body = b'{"data": [{"eventName": "abc"}]}'
    changed = {payload.mutated(body, Random(number), marked) for number in range(200)}
    as_json = {one for one in changed if MARK not in one[-1:]}
    assert len(as_json) > 20
    assert any(json.loads(one) == json.loads(body) for one in as_json if one != body), "no character is escaped"
    assert any(MARK in one for one in as_json), "no string was changed"
    assert body + MARK in changed


MARK: Final = b"~"


def marked(data: bytes) -> bytes:
    return data + MARK


@pytest.mark.parametrize(
    "wrong", [None, ParsedBody(2, ()), ParsedBody(1, parse(b'[{"eventName": "statsig::config_change"}]').changes)]
)
def test_the_oracle_of_payloads_notices(wrong: ParsedBody | None) -> None:
    with pytest.raises(AssertionError):
        check_against_the_library(b"[1]", wrong)


def test_readers_that_disagree_are_noticed() -> None:
    with pytest.raises(AssertionError):
        check_readers(b"[1]", ParsedBody(2, ()))


@pytest.mark.parametrize(
    "request_",
    [b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nGET"],
)
def test_a_request_that_h11_reads_otherwise_is_noticed(request_: bytes) -> None:
    found = framing.read([request_])
    assert found is not None
    framing.check_against_h11(request_, found)
    with pytest.raises(AssertionError):
        framing.check_against_h11(request_, replace(found, body=found.body + b"G", rest=found.rest[1:]))


@pytest.mark.parametrize(
    "wrong", [{"target": b"/"}, {"method": "GET"}, {"keep_alive": False}, {"expects_continue": False}, {"fields": []}]
)
def test_a_head_that_was_read_otherwise_is_noticed(wrong: dict[str, Any]) -> None:
    request = b"POST http://a/b HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n1"
    found = framing.read([request])
    assert found is not None
    assert found.head is not None
    framing.check_found(request, found)
    with pytest.raises(AssertionError):
        framing.check_found(request, replace(found, head=replace(found.head, **wrong)))


def test_a_plain_request_that_is_refused_is_noticed() -> None:
    start = b"POST / HTTP/1.1\r\nHost: a\r\n"
    for one in (b"Content-Length: 1\r\n\r\n1", b"Transfer-Encoding: chunked\r\n\r\nA;b\r\n0123456789\r\n0\r\n\r\n"):
        with pytest.raises(AssertionError):
            framing.check_refused(start + one)
    framing.check_refused(start + b"Host: a\r\n\r\n")
    framing.check_refused(start + b"Content-Length: 1, 1\r\n\r\n1")


@pytest.mark.parametrize(
    "body",
    [b"1;\n\r\nx\r\n0\r\n\r\n", b"+1\r\nx\r\n0\r\n\r\n", b"1\r\nx0\r\n\r\n", b"1\r\nx\r\n0\r\na\r\n\r\n", b"0\r\n\r\n"],
)
def test_a_body_that_is_not_chunked_is_noticed(body: bytes) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    right = framing.read([head + b"1\r\nx\r\n0\r\n\r\n"])
    assert right is not None
    framing.check_chunks(head + b"1\r\nx\r\n0\r\n\r\n", right)
    with pytest.raises(AssertionError):
        framing.check_chunks(head + body, right)


@pytest.mark.parametrize("wrong", [b"", b"{}\n", b'{"result": NaN}\n', b'{"error": "x"}', b"{}\n{}\n", b"[]\n"])
def test_a_wrong_answer_is_noticed(wrong: bytes) -> None:
    with pytest.raises((AssertionError, ValueError)):
        check_answer(b"{}\n", wrong)


@pytest.mark.parametrize("delivered", [{"otlp": {1000}, "file": {30, 1000}}, {"otlp": {30}, "file": {30}}])
def test_a_record_that_is_missing_is_noticed(delivered: dict[str, set[int]]) -> None:
    with pytest.raises(AssertionError, match="has not got"):
        check_delivered(delivered, [30])


def test_results_are_rows_of_one_table(tmp_path: Path) -> None:
    for executions in (1, 2):
        report = Report("payload", "2026-01-01T00:00Z", "ab12", 20, executions, 10 + executions, 3, 4)
        add_result(tmp_path / "fuzz.md", report)
    assert (tmp_path / "fuzz.md").read_text().splitlines() == [
        "# Fuzzing",
        "",
        "| target | date | code | seconds | executions | all executions | covered | quiet seconds | failed |",
        "|---|---|---|---|---|---|---|---|---|",
        "| payload | 2026-01-01T00:00Z | ab12 | 20 | 1 | 11 | 3 | 4 | False |",
        "| payload | 2026-01-01T00:00Z | ab12 | 20 | 2 | 12 | 3 | 4 | False |",
    ]


def test_the_fingerprint_is_that_of_the_code() -> None:
    """A comment or docstring does not throw the counts away."""
    same = ('"""Doc."""\nA = 1\n"""Why."""\n', "# why\nA=1\n", "A = (1)  # why")
    assert len({code(source) for source in same}) == 1
    assert code("A = 1") != code("A = 2")
    assert code('A = "a"') != code('A = "b"')


def test_runs_on_the_same_code_count_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "FOUND", tmp_path)
    last = replace(
        run.begin("payload"), seconds=9, executions=1, all_executions=10_000_000, covered=3, quiet_seconds=1800
    )
    (tmp_path / "payload.json").write_text(json.dumps(asdict(last)))
    again = run.begin("payload")  # perhaps a minute later
    assert again == replace(last, seconds=0, executions=0, date=again.date)
    assert again.is_enough
    assert not replace(last, all_executions=9_999_999).is_enough
    assert not replace(last, quiet_seconds=1799).is_enough
    (tmp_path / "payload.json").write_text(json.dumps(asdict(replace(last, code="of another version"))))
    anew = run.begin("payload")
    assert (anew.all_executions, anew.quiet_seconds) == (0, 0)
