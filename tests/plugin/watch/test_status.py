"""What is said of a service in plain words: whether it receives, what came last, and who holds records up."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from statsig_otel._journal import Journal
from statsig_otel.exporters.terminal import width, wrap
from statsig_otel.exporters.wording import about, age, ago
from statsig_otel.plugin import Intake, Verifier
from statsig_otel.plugin.watch.diagnosis import why
from statsig_otel.plugin.watch.health import Condition
from statsig_otel.plugin.watch.status import facts_of, status
from tests.plugin.fresh import fresh_process

IDLE: Mapping[str, Any] = {"state": "idle", "waiting": 0}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    with fresh_process():
        yield


def kept() -> Journal:
    journal = Journal()
    journal.keep()
    return journal


def words(
    intake: Intake,
    *,
    exporters: Mapping[str, Mapping[str, Any]] | None = None,
    dead_letters: int = 0,
    since: float = 600,
    of: Journal | None = None,
    **reasons: str,
) -> str:
    facts = facts_of(
        condition=Condition(reasons, {}),
        exporters={"mine": IDLE} if exporters is None else exporters,
        receivers={"statsig": intake},
        paths={"statsig": "/hook"},
        dead_letters=dead_letters,
        since=time.time() - since,
        of=kept() if of is None else of,
    )
    said = status(facts)["words"]
    assert isinstance(said, str)
    return said


def intake(*secrets: str) -> Intake:
    return Intake(verifier=Verifier(secrets or ("webhook-a-secret",)))


def seen(intake: Intake, *, verified: float = 0, changed: float = 0) -> Intake:
    """A receiver whose last webhook and change are so many seconds old."""
    now = time.time()
    intake.counts.last_verified_ns = int((now - verified) * 1e9) if verified else 0
    intake.counts.last_change_ns = int((now - changed) * 1e9) if changed else 0
    return intake


def test_what_came_last() -> None:
    assert words(intake()) == "Ready. No webhook with a valid signature since the start, 10 minutes ago."
    nothing_new, last = "No new config change since the start", "Last webhook 5 minutes ago."
    receiver = seen(intake(), verified=301)
    assert words(receiver) == f"{nothing_new}. {last}"
    receiver.counts.ignore({"checkout": 2, "statsig::gate_exposure": 15, "statsig::config_change": 1})
    receiver.counts.duplicates, receiver.counts.invalid = 3, 1
    assert words(receiver) == (
        f"{nothing_new}, only 17 other events, 1 filtered change, 3 duplicates, 1 invalid change. {last}"
    )
    assert words(seen(intake(), verified=2, changed=7201)) == "Receiving. Last config change 2 hours ago."


def test_a_receiver_without_a_secret() -> None:
    said = "statsig has no signing secret yet: it only answers Statsig's URL verification."
    assert words(Intake(verifier=Verifier([]))) == said


def test_why_webhooks_are_refused() -> None:
    said = "Not receiving: 10 records or more wait for mine: that is its queue_size."
    assert words(intake(), queue_full="10 records or more wait for mine: that is its queue_size") == said


def test_a_refusal_is_said_until_something_valid_comes() -> None:
    journal, receiver = kept(), intake()
    journal.add_request("statsig", 401, "signature_wrong", "another secret")
    why_not = "the signature does not match. A request was refused just now."
    assert words(receiver, of=journal) == f"Not receiving: {why_not}"
    later = f"Refusing requests: {why_not} Last config change 1 minute ago."
    assert words(seen(receiver, verified=60, changed=60), of=journal) == later
    assert "refused" not in words(seen(receiver, verified=-1, changed=1), of=journal)


def test_a_refusal_is_said_though_the_last_webhook_came_before_the_clock_was_put_back() -> None:
    journal, one = kept(), seen(intake(), verified=-86400, changed=-86400)
    assert words(one, of=journal) == "Receiving. Last config change just now."
    journal.add_request("statsig", 401, "timestamp_outside_tolerance", "")
    assert words(one, of=journal).startswith(
        "Refusing requests: the webhook's time is too far from this machine's clock."
    )


def test_what_never_reaches_a_receiver_is_said_until_the_first_webhook() -> None:
    """Later it is the noise of every public address."""
    for status_, reason in ((404, "not_found"), (400, "tls"), (0, "tls_handshake")):
        journal, receiver = kept(), seen(intake())
        journal.add_request("", status_, reason, "what to do")
        assert words(receiver, of=journal) == f"Not receiving: {why(reason)}. A request was refused just now."
        assert "refused" not in words(seen(receiver, verified=60, changed=60), of=journal)
    journal = kept()
    journal.add_request("", 431, "head", "")
    assert "refused" not in words(intake(), of=journal)


def test_who_holds_records_up() -> None:
    exporters: dict[str, dict[str, Any]] = {
        "good": {"state": "sending", "waiting": 3},
        "away": {"state": "retrying", "waiting": 1},
        "shut": {"state": "blocked", "waiting": 12},
        "at_once": {"state": "refused"},
    }
    said = words(seen(intake(), verified=250, changed=250), exporters=exporters, dead_letters=2)
    assert said == (
        "Not delivering to shut, which is blocked: 12 records wait. Not delivering to at_once, which is refused. "
        "Receiving. Last config change 4 minutes ago. away is retrying: 1 record waits. 2 dead letters held."
    )


def test_the_rate_is_that_of_the_last_minute() -> None:
    journal = kept()
    journal.add_attempt("mine", "delivered", "", records=3, delivered=3, seconds=0.1)
    journal.add_attempt("mine", "delivered", "", records=4, delivered=4, seconds=0.1)
    journal._attempts.entries[0].at -= 61
    journal.add_attempt("mine", "partially_rejected", "", records=4, delivered=1, seconds=0.1)
    nothing = Condition({}, {})
    facts = facts_of(
        condition=nothing, exporters={"mine": IDLE}, receivers={}, paths={}, dead_letters=0, since=0.0, of=journal
    )
    assert status(facts)["exporters"]["mine"]["delivered_last_minute"] == 1


def test_times_in_words() -> None:
    assert [ago(seconds) for seconds in (0, 0.9, 1, 59, 60, 7199, 7200, 86_400, 200_000)] == [
        "just now", "just now", "1 second ago", "59 seconds ago", "1 minute ago", "1 hour ago", "2 hours ago",
        "1 day ago", "2 days ago",
    ]  # fmt: skip
    assert [age(seconds) for seconds in (0, 59, 245, 3600, 183_600)] == ["0s", "59s", "4m5s", "1h0m", "2d3h"]
    times = {
        0.5: "0.5 s",
        119: "119 s",
        420: "7 min",
        7199: "120 min",
        7200: "2 h",
        200_000: "2 days",
        1e9: "11574 days",
    }
    assert {seconds: about(seconds) for seconds in times} == times


def test_lines_are_broken_at_spaces_and_measured_in_cells() -> None:
    assert wrap("one two three", 7) == ["one two", "three"]
    assert wrap("a very_long_word b", 6) == ["a", "very_l", "ong_wo", "rd b"]
    assert wrap("", 5) == [""]
    for text in ("変更 " * 20, "変更" * 20, "x" * 50):
        lines = wrap(text, 11)
        assert all(width(line) <= 11 for line in lines)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
