"""What is said of a service in plain words: whether it receives, what came last, and who holds records up."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from statsig_otel import _journal
from statsig_otel._journal import Journal
from statsig_otel._telemetry import StateName
from statsig_otel.exporters.delivery.facts import ExporterFacts, with_history
from statsig_otel.exporters.terminal import width, wrap
from statsig_otel.exporters.wording import about, age, ago
from statsig_otel.plugin import Intake, Service, Verifier
from statsig_otel.plugin.watch.diagnosis import summary, troubles
from statsig_otel.plugin.watch.facts import Facts, facts_of, receiver_facts
from statsig_otel.plugin.watch.history import totals
from statsig_otel.plugin.watch.reasons import why
from statsig_otel.plugin.watch.status import status
from tests.peers.otlp_servers import HttpAnswer, HttpSink
from tests.plugin.fresh import fresh_process
from tests.plugin.http_client import exchange
from tests.plugin.services import SECRET, page_config, post_change, webhook
from tests.waiting import wait_until

IDLE = ExporterFacts(name="mine")


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
    exporters: Sequence[ExporterFacts] | None = None,
    dead_letters: int = 0,
    since: float = 600,
    of: Journal | None = None,
    **reasons: str,
) -> str:
    facts = facts_of(
        reasons=reasons,
        exporters=[IDLE] if exporters is None else exporters,
        receivers=[receiver_facts("statsig", intake, path="/hook")],
        dead_letters=dead_letters,
        set_aside=[],
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


def exporters_alone(exporters: Sequence[ExporterFacts], journal: Journal) -> Facts:
    """The facts of a service without receivers."""
    return facts_of(
        reasons={},
        exporters=with_history(exporters, journal),
        receivers=[],
        dead_letters=0,
        set_aside=[],
        since=0.0,
        of=journal,
    )


def test_what_came_last() -> None:
    assert words(intake()) == "Ready. No webhook with a valid signature since the start, 10 minutes ago."
    nothing_new, last = "No new config change since the start", "Last webhook 5 minutes ago."
    receiver, journal = seen(intake(), verified=301), kept()
    assert words(receiver) == "No webhook was accepted since the start, 10 minutes ago."
    journal.add_request("statsig", 200, "accepted", "")
    assert words(receiver, of=journal) == f"{nothing_new}. {last}"
    receiver.counts.ignore({"checkout": 2, "statsig::gate_exposure": 15, "statsig::config_change": 1})
    receiver.counts.duplicates, receiver.counts.invalid = 3, 1
    assert words(receiver, of=journal) == (
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
    journal.add_request("statsig", 200, "url_verification", "")
    assert words(receiver, of=journal) == f"Not receiving: {why_not}", "that needs no secret"
    journal = kept()
    journal.add_request("statsig", 200, "accepted", "", {"accepted": 1})
    journal.add_request("statsig", 401, "signature_wrong", "another secret")
    later = f"Refusing requests: {why_not} Last config change 1 minute ago."
    assert words(seen(receiver, verified=60, changed=60), of=journal) == later
    journal.add_request("statsig", 503, "queue_full", "too much waits")
    journal.add_request("statsig", 200, "accepted", "", {"accepted": 1})
    assert words(receiver, of=journal) == (
        "A webhook was answered with 503 just now: Statsig may not send it again. "
        "Receiving. Last config change 1 minute ago. Some requests are refused: the signature does not match."
    )


def test_a_refusal_is_said_though_the_last_webhook_came_before_the_clock_was_put_back() -> None:
    journal, one = kept(), seen(intake(), verified=-86400, changed=-86400)
    assert words(one, of=journal) == "Receiving. Last config change just now."
    journal.add_request("statsig", 200, "accepted", "")
    journal.add_request("statsig", 401, "timestamp_outside_tolerance", "")
    assert words(one, of=journal).startswith("Refusing requests: wrong time.")


def test_a_refusal_of_before_the_clock_was_put_back_stays_in_sight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = page_config(tmp_path, {"debug": {}})
    with Service.from_file(config, environ={}) as running:
        for secret, status_ in ((SECRET, 200), (f"{SECRET}0", 401)):
            assert post_change(running, "a", secret=secret).status == status_
        assert summary(running._assembly.facts()).startswith("Refusing requests: ")
        wall = time.time
        for module in (_journal, time):
            monkeypatch.setattr(module, "time", lambda: wall() - 86_400)
        assert summary(running._assembly.facts()).startswith("Refusing requests: ")
        monkeypatch.undo()


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
    exporters = [
        ExporterFacts(name="good", state="sending", waiting=3),
        ExporterFacts(name="away", state="retrying", waiting=1),
        ExporterFacts(name="shut", state="blocked", waiting=12),
        ExporterFacts(name="at_once", state="refused", waiting=None),
    ]
    said = words(seen(intake(), verified=250, changed=250), exporters=exporters, dead_letters=2)
    assert said == (
        "Not delivering to shut, which is blocked: 12 records wait. Not delivering to at_once, whose backend "
        "refuses the records. "
        "Receiving. Last config change 4 minutes ago. away is retrying: 1 record waits. 1 of 4 exporters is well. "
        "2 dead letters kept."
    )


def test_an_exporter_without_a_queue_tells_what_its_backend_said_last_while_it_is_not_well() -> None:
    journal = kept()
    for reason in ("HTTP 500 from a", "HTTP 503 from a"):
        journal.add_attempt("direct", "retry_later", reason, records=1, delivered=0, seconds=0.1)
        journal._attempts.last.clear()  # as if it were a second later
    journal.add_attempt("other", "retry_later", "HTTP 502 from b", records=1, delivered=0, seconds=0.1)
    states: dict[StateName, str] = {"retrying": "HTTP 503 from a", "idle": ""}
    for state, said in states.items():
        found = exporters_alone([ExporterFacts(name="direct", state=state, waiting=None)], journal)
        assert [one.last_error for one in found.exporters] == [said]


def test_each_of_three_receivers_has_its_own_faults_and_lost_webhooks_stay_in_sight(tmp_path: Path) -> None:
    with HttpSink() as sink:
        sink.answer = HttpAnswer(status=503)
        secret = {"signing_secrets": [SECRET]}
        receivers = {
            "statsig": {"endpoint": "127.0.0.1:0", **secret},
            "statsig/bare": {"endpoint": "localhost:0", "path": "/bare", "signing_secrets": []},
            "statsig/other": {"endpoint": "localhost:0", "path": "/other", **secret},
        }
        exporters = {"otlp_http": {"endpoint": sink.url, "sending_queue": {"queue_size": 1}}}
        config = page_config(tmp_path, exporters, receivers=receivers)
        with Service.from_file(config, environ={}) as running:
            at = {name: urlsplit(url) for name, url in running.urls.items()}

            def send(name: str, *, path: str = "", secret: str = SECRET, flag: str = "a") -> int:
                address = str(at[name].hostname), int(at[name].port or 0)
                return exchange(address, webhook(flag, path or at[name].path, secret=secret)).status

            def told() -> str:
                found = running._assembly.facts()
                return "\n".join([summary(found), *(one.title for one in troubles(found))])

            def waiting() -> int | None:
                return running._assembly.facts().exporters[0].waiting

            port, page = at["statsig/other"].port, urlsplit(running._assembly.zpages.url)  # type: ignore[union-attr]
            before = totals(running.urls)
            exchange((str(page.hostname), int(page.port or 0)), b"\x16\x03\x01\x02\x00")
            assert "TLS" not in told(), "the page's own port is not a receiver's"
            assert totals(running.urls) == before, "nor does the chart count it"
            assert send("statsig") == 200
            assert send("statsig/bare") == send("statsig/other", secret=f"{SECRET}0") == 401
            assert send("statsig/other", path="/hook") == send("statsig", path="/hook") == 404
            assert [send("statsig", flag="b") for _ in range(5)] == [503] * 5
            sink.answer = HttpAnswer()
            running._assembly.command("queue resume", {"exporter": "otlp_http"})
            wait_until(lambda: waiting() == 0, "the record is delivered")
            lost = "5 webhooks to statsig were answered with 503: the queue is full"
            others = (
                "statsig/bare has no signing secret yet",
                "A request to statsig/bare was refused: no signing secret is set yet",
                "A request to statsig/other was refused: the signature does not match",
                f"A request to port {port} was refused: wrong path",
            )
            for state in ("statsig is refusing requests: the queue is full.", "Last config change "):
                said = told()
                for sentence_ in (state, lost, *others, "5 webhooks were answered with 503, the last "):
                    assert sentence_ in said
                assert ("statsig is refusing" in said) == state.startswith("statsig")
                assert f"port {at['statsig'].port}" not in said, "there a webhook has come"
                assert send("statsig", flag="c") == 200
                wait_until(lambda: waiting() == 0, "it is delivered")
            for secret_, status_ in ((f"{SECRET}0", 401), (SECRET, 200), (f"{SECRET}0", 401)):
                assert send("statsig", secret=secret_, flag="c") == status_
            assert "A request to statsig was refused: the signature does not match" in told()


def test_the_rate_is_that_of_the_last_minute_however_few_entries_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    journal = kept()
    journal.keep(entries=1)
    now = time.time()
    for second in range(100):
        monkeypatch.setattr(_journal, "time", lambda: now + second)  # noqa: B023 - until the next second
        for name in ("mine", "other"):
            journal.add_attempt(name, "delivered", "", records=2, delivered=2, seconds=0.1)
            journal.add_attempt(name, "partially_rejected", "", records=4, delivered=1, seconds=0.1)
    found = exporters_alone([IDLE, ExporterFacts(name="other")], journal)
    rates = [one["delivered_last_minute"] for one in status(found)["exporters"].values()]
    assert rates == [180, 180]
    monkeypatch.setattr(_journal, "time", lambda: now + 200)
    assert journal.delivered_last_minute() == {"mine": 0, "other": 0}


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
        19_840: "5.5 h",
        200_000: "2.5 days",
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
