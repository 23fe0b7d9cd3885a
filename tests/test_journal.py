"""The journal keeps the last of everything, within bounds, whatever arrives."""

import os
import sys
import threading
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statsig_otel import _journal
from statsig_otel._journal import Journal


@dataclass(frozen=True)
class OneChange:
    uid: str
    records: tuple[bytes, ...]


class Clock:
    """The time that the journal sees."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_journal, "time", clock)
    return clock


def kept() -> Journal:
    journal = Journal()
    journal.keep()
    return journal


def test_nothing_is_added_until_somebody_may_read() -> None:
    journal = Journal()
    journal.add_request("statsig", 200, "accepted", "", {"accepted": 1})
    journal.add_changes("statsig", 1, [OneChange("a", (b"record",))])
    journal.add_attempt("otlp_grpc", "delivered", "", records=1, delivered=1, seconds=0.1)
    assert (journal.requests(), journal.changes(), journal.attempts()) == ([], [], [])


def test_requests_of_one_second_with_the_same_verdict_share_an_entry(clock: Clock) -> None:
    journal = kept()
    journal.add_request("statsig", 200, "accepted", "", {"accepted": 1, "duplicates": 0})
    journal.add_request("statsig", 401, "signature_wrong", "first")
    clock.now += 0.9
    journal.add_request("statsig", 200, "accepted", "", {"accepted": 2, "duplicates": 1})
    journal.add_request("statsig/eu", 200, "accepted", "")
    clock.now += 0.2
    journal.add_request("statsig", 401, "signature_wrong", "second")
    journal.add_request("statsig", 401, "signature_wrong", "third")
    journal.add_request("", 400, "tls", "TLS", port=4433)
    shown = [(one.receiver, one.reason, one.detail, one.count, one.items, one.port) for one in journal.requests()]
    assert shown == [
        ("statsig", "signature_wrong", "third", 2, {}, 0),
        ("", "tls", "TLS", 1, {}, 4433),
        ("statsig/eu", "accepted", "", 1, {}, 0),
        ("statsig", "accepted", "", 2, {"accepted": 3, "duplicates": 1}, 0),
        ("statsig", "signature_wrong", "first", 1, {}, 0),
    ]


def test_the_echo_of_a_url_verification_and_texts_are_not_numbers_of_items(clock: Clock) -> None:
    journal = kept()
    journal.add_request("statsig", 200, "url_verification", "", {"verification_code": "123"})
    assert journal.requests()[0].items == {}


def test_attempts_of_one_second_with_the_same_outcome_share_an_entry(clock: Clock) -> None:
    journal = kept()
    for seconds in (0.5, 0.2):
        journal.add_attempt("otlp_grpc", "delivered", "", records=10, delivered=10, seconds=seconds)
    journal.add_attempt("otlp_grpc", "retry_later", "away", records=3, delivered=0, seconds=1.0)
    clock.now += 1
    journal.add_attempt("otlp_grpc", "delivered", "", records=1, delivered=1, seconds=0.1)
    newest, *rest = journal.attempts()
    assert (newest.count, newest.records) == (1, 1)
    assert {(one.outcome, one.reason, one.count, one.records, one.delivered, one.seconds) for one in rest} == {
        ("retry_later", "away", 1, 3, 0, 1.0),
        ("delivered", "", 2, 20, 20, 0.5),
    }


def test_a_flood_of_good_requests_does_not_push_out_refusals_nor_the_other_way_round(clock: Clock) -> None:
    journal = kept()
    journal.add_request("statsig", 401, "signature_wrong", "forged")
    journal.add_request("statsig", 200, "url_verification", "")
    for second in range(1000):
        clock.now += 1
        journal.add_request("statsig", 200, "accepted", "", {"ignored": 500})
        journal.add_request("", 404, "not_found", str(second))
    assert len(journal.requests()) == 600
    assert {one.reason for one in journal.requests()} == {"accepted", "not_found"}
    # But of each verdict the last one stays.
    assert {one.reason for one in journal.last_requests()} == {
        "signature_wrong",
        "url_verification",
        "accepted",
        "not_found",
    }


def test_after_the_clock_was_put_back_no_entry_is_newer_than_the_next_one(clock: Clock) -> None:
    journal = kept()
    journal.add_request("statsig", 401, "timestamp_outside_tolerance", "three days old")
    journal.add_attempt("otlp_grpc", "delivered", "", records=1, delivered=1, seconds=0.1)
    clock.now -= 3 * 86400
    (request,), (attempt,) = journal.requests(), journal.attempts()
    assert request.at == attempt.at == clock.now - 1
    journal.add_request("statsig", 200, "accepted", "")
    journal.add_request("statsig", 401, "timestamp_outside_tolerance", "a day old")
    assert [(one.detail, one.count) for one in journal.requests()][1:] == [("a day old", 1), ("three days old", 1)]
    assert journal.last_requests()[-1].at == clock.now
    accepted, refused = journal.last_requests()
    assert refused.last == accepted.last
    journal.add_changes("statsig", int((clock.now + 86400) * 1e9), [OneChange("early", (b"x",))])
    clock.now += 86400
    journal.add_request("statsig", 200, "accepted", "")
    clock.now -= 86395
    journal.add_changes("statsig", int(clock.now * 1e9), [OneChange("first after it", (b"x",))])
    assert [one.at_ns / 1e9 - clock.now for one in journal.changes()] == pytest.approx([0.0, -1.0], abs=0.01)
    journal.add_request("statsig", 200, "accepted", "")
    clock.now -= 86400
    accepted, refused = journal.last_requests()
    assert refused.last < accepted.last < clock.now, "it is over, as before"


def test_a_run_of_refusals_ends_with_the_receivers_next_accepted_webhook(clock: Clock) -> None:
    """Of each verdict the last entry counts the refusals since then, also those of the same second."""
    journal = kept()

    def runs() -> dict[tuple[str, str, int], int]:
        return {(one.receiver, one.reason, one.port): one.run for one in journal.last_requests() if one.status != 200}

    def refuse(receiver: str = "a", status: int = 401, reason: str = "signature_wrong", port: int = 0) -> None:
        clock.now += 0.2
        journal.add_request(receiver, status, reason, "", port=port)

    for _ in range(7):
        refuse()
        refuse("b")
        refuse("a", 503, "queue_full")
        refuse("", 404, "not_found", 1)
        refuse("", 404, "not_found", 2)
    wrong, full = ("a", "signature_wrong", 0), ("a", "queue_full", 0)
    others = {("b", "signature_wrong", 0): 7, ("", "not_found", 1): 7, ("", "not_found", 2): 7}
    assert runs() == {wrong: 7, full: 7, **others}
    refuse()
    journal.add_request("a", 200, "url_verification", "")  # which needs no secret
    refuse()
    clock.now += 0.1
    journal.add_request("a", 200, "accepted", "")
    refuse()
    refuse("b")
    refuse("a", 503, "queue_full")
    others["b", "signature_wrong", 0] += 1
    assert runs() == {wrong: 1, full: 8, **others}
    refuse()
    clock.now += 86_399
    refuse("a", 503, "queue_full")
    assert runs() == {wrong: 2, full: 9, **others}
    clock.now += 86_401
    refuse("a", 503, "queue_full")
    assert runs() == {wrong: 2, full: 1, **others}
    assert sum(one.count for one in journal.requests()) == 45


def test_a_refusal_knows_whether_webhooks_were_accepted_before_it(clock: Clock) -> None:
    journal = kept()
    journal.add_request("a", 401, "signature_wrong", "")
    journal.add_request("b", 200, "accepted", "")
    journal.add_request("b", 401, "signature_wrong", "")
    assert {one.receiver: one.follows for one in journal.requests() if one.status != 200} == {"a": False, "b": True}
    journal.add_request("a", 200, "accepted", "")
    journal.add_request("a", 401, "signature_wrong", "")  # in the same second
    assert {one.receiver: one.follows for one in journal.requests() if one.status != 200} == {"a": True, "b": True}


def test_an_entry_says_when_its_last_request_was_answered(clock: Clock) -> None:
    journal = kept()
    began = clock.now
    for _ in range(3):
        journal.add_request("statsig", 401, "signature_wrong", "")
        clock.now += 0.4
    (only,) = journal.requests()
    assert (only.at, only.last, only.count) == (began, clock.now - 0.4, 3)


def test_verdicts_without_end_cost_no_memory(clock: Clock) -> None:
    journal = kept()
    for number in range(5000):
        journal.add_request("statsig", 503, f"reason {number}", "of an embedder")
        journal.add_attempt(f"exporter {number}", "blocked", "", records=1, delivered=0, seconds=0.0)
    assert len(journal.requests()) == 300
    assert len(journal.attempts()) == 300
    assert [one.reason for one in journal.last_requests()] == [f"reason {number}" for number in range(4800, 5000)]


def test_strangers_at_many_receivers_do_not_push_out_what_may_be_lost(clock: Clock) -> None:
    journal = kept()
    journal.add_request("statsig/0", 503, "storage_failed", "")
    for number in range(20):
        for status in range(400, 415):
            journal.add_request(f"statsig/{number}", status, f"reason {status}", "")
            journal.add_request(f"statsig/{number}", 503, "in_flight_bytes", "")
    reasons = [one.reason for one in journal.last_requests()]
    assert (len(reasons), reasons.count("storage_failed")) == (200, 1)


def test_only_the_last_changes_are_kept_newest_first_and_each_once() -> None:
    journal = kept()
    journal.add_changes("statsig", 1, [OneChange("a", (b"1",)), OneChange("b", (b"2", b"2"))])
    journal.add_changes("statsig", 2, [OneChange("a", (b"1",)), OneChange("c", (b"3",))])
    assert [(one.uid, one.at_ns, one.size) for one in journal.changes()] == [("c", 2, 1), ("b", 1, 2), ("a", 1, 1)]
    journal.add_changes("statsig", 3, [OneChange("d", (b"4",))], "missed")
    journal.add_changes("statsig", 4, [OneChange("e", (b"5",))])
    journal.add_changes("statsig", 5, [OneChange("d", (b"4",))], "filled in")
    noted = [(one.uid, one.note) for one in journal.changes()]
    assert noted == [("d", "filled in"), ("e", ""), ("c", ""), ("b", ""), ("a", "")]
    journal.add_changes("statsig", 6, [OneChange(str(number), (b"x",)) for number in range(1000)])
    assert [one.uid for one in journal.changes()] == [str(number) for number in range(999, 699, -1)]


def test_a_change_that_is_too_large_is_named_without_its_records() -> None:
    journal = kept()
    journal.add_changes("statsig", 1, [OneChange("a", (b"x" * 3_000_000, b"x" * 3_000_000))])
    (only,) = journal.changes()
    assert (only.records, only.size) == ((), 6_000_000)


@given(st.lists(st.lists(st.lists(st.integers(1, 3 << 20), min_size=1, max_size=3), max_size=4), max_size=12))
def test_records_take_bounded_memory(requests: list[list[list[int]]]) -> None:
    """The newest change is always named, and as many are kept as fit, without the records of those that never would."""
    journal, added = kept(), list[tuple[str, int]]()
    block = memoryview(bytes(3 << 20))
    for batch in requests:
        changes = []
        for sizes in batch:
            changes.append(OneChange(str(len(added)), tuple(bytes(block[:size]) for size in sizes)))
            added.append((changes[-1].uid, sum(sizes)))
        journal.add_changes("statsig", len(added), changes)
        expected, total = [], 0
        for uid, size in reversed(added):
            total += size if size <= 4 << 20 else 0
            if total > 4 << 20:
                break
            expected.append((uid, size))
        assert [(one.uid, one.size) for one in journal.changes()] == expected
        assert sum(len(record) for one in journal.changes() for record in one.records) <= 4 << 20


def test_what_was_read_does_not_change_any_more(clock: Clock) -> None:
    journal = kept()
    journal.add_request("statsig", 200, "accepted", "", {"accepted": 1})
    journal.add_attempt("otlp_grpc", "delivered", "", records=1, delivered=1, seconds=0.1)
    (request,), (attempt,) = journal.requests(), journal.attempts()
    journal.add_request("statsig", 200, "accepted", "", {"accepted": 1})
    journal.add_attempt("otlp_grpc", "delivered", "", records=1, delivered=1, seconds=0.1)
    assert (request.count, request.items, attempt.count) == (1, {"accepted": 1}, 1)


def test_threads_add_and_read_at_the_same_time() -> None:
    """No entry is lost or torn, and no reader sees an error."""
    journal = kept()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:

        def add(name: str) -> None:
            for number in range(300):
                journal.add_request(name, 200, "accepted", "", {"accepted": 1})
                journal.add_changes(name, number, [OneChange(f"{name} {number}", (b"record",))])

        threads = [threading.Thread(target=add, args=(str(number),)) for number in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            for entry in journal.requests():
                assert entry.items.get("accepted", 0) == entry.count
            journal.changes()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert sum(entry.count for entry in journal.requests()) == 1200
    assert len(journal.changes()) == 300


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")  # it is what this test is about
def test_a_child_has_a_lock_of_its_own() -> None:
    journal = kept()
    journal.add_request("statsig", 200, "accepted", "")
    lock, status = journal._lock, 1
    child = os.fork()
    if child == 0:
        try:
            status = 0 if journal._lock is not lock and len(journal.requests()) == 1 else 1
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_its_sizes_can_be_set_and_what_fits_stays(clock: Clock) -> None:
    journal = kept()

    def add(numbers: range) -> None:
        for number in numbers:
            clock.now += 1
            journal.add_request("statsig", 200, "accepted", "", {"accepted": number})
            journal.add_request("statsig", 401, "signature_wrong", str(number))
            journal.add_attempt("otlp_grpc", "delivered", "", records=number, delivered=number, seconds=0.1)
            journal.add_changes("statsig", number, [OneChange(str(number), (b"x" * 1000,))])

    def shown() -> tuple[list[int], list[str], list[int], list[str]]:
        requests = journal.requests()
        return (
            [one.items["accepted"] for one in requests if one.items],
            [one.detail for one in requests if one.detail],
            [one.records for one in journal.attempts()],
            [one.uid for one in journal.changes()],
        )

    add(range(1, 11))
    journal.keep(3, 4 << 20)
    assert shown() == ([10, 9, 8], ["10", "9", "8"], [10, 9, 8], ["10", "9", "8"])
    add(range(11, 13))
    assert shown() == ([12, 11, 10], ["12", "11", "10"], [12, 11, 10], ["12", "11", "10"])
    journal.keep(500, 1500)  # bytes: one change
    assert shown() == ([12, 11, 10], ["12", "11", "10"], [12, 11, 10], ["12"])
    add(range(13, 1000))
    assert [len(found) for found in shown()] == [500, 500, 500, 1]
