"""What the page says of a service, for each condition it can be in."""

from dataclasses import replace

from statsig_otel._journal import RequestEntry
from statsig_otel.plugin.receiver.counting import REASONS as RECEIVER_REASONS
from statsig_otel.plugin.server.reader import REFUSALS
from statsig_otel.plugin.watch.diagnosis import (
    REASONS,
    ExporterFacts,
    Facts,
    ReceiverFacts,
    check,
    sentence,
    steps,
    troubles,
    why,
)
from tests.looped import looped

REFUSED = "3 requests were refused, the last 10 seconds ago."
NOW = 1_800_000_000.0
RECEIVER = ReceiverFacts(name="statsig", path="/hook")
RECEIVING = replace(RECEIVER, last_verified=NOW - 240, last_change=NOW - 240)
SENDING = ExporterFacts(name="otlp_grpc", delivered=1)


def facts(receiver: ReceiverFacts = RECEIVER, exporter: ExporterFacts = SENDING, *requests: RequestEntry) -> Facts:
    return Facts(now=NOW, since=NOW - 600, receivers=[receiver], exporters=[exporter], requests=requests)


def refused(reason: str, detail: str = "", *, before: float = 10, receiver: str = "statsig") -> RequestEntry:
    return RequestEntry(receiver, 401, reason, detail, NOW - before, 3)


WITHOUT = "statsig has no signing secret yet: it only answers Statsig's URL verification."
SINCE = "Ready. No webhook with a valid signature since the start, 10 minutes ago."


@looped(
    ("found", "said"),
    [
        (facts(), SINCE),
        (facts(RECEIVING), "Receiving. Last config change 4 minutes ago."),
        (
            facts(RECEIVER, SENDING, refused("signature_wrong", "another secret")),
            f"Not receiving: the signature does not match. {REFUSED}",
        ),
        (
            facts(RECEIVING, SENDING, refused("signature_wrong", "another secret")),
            f"Refusing requests: the signature does not match. {REFUSED} Last config change 4 minutes ago.",
        ),
        (
            facts(RECEIVING, SENDING, refused("signature_wrong", before=500)),
            "Receiving. Last config change 4 minutes ago.",
        ),
        # On a public port there is always somebody who looks for other paths.
        (facts(RECEIVING, SENDING, refused("not_found", receiver="")), "Receiving. Last config change 4 minutes ago."),
        (
            facts(RECEIVER, SENDING, refused("not_found", receiver="")),
            f"Not receiving: wrong path. {REFUSED}",
        ),
        (
            facts(replace(RECEIVER, last_verified=NOW - 7)),
            "No new config change since the start. Last webhook 7 seconds ago.",
        ),
        (
            facts(replace(RECEIVER, has_secret=False)),
            WITHOUT,
        ),
        (
            facts(replace(RECEIVER, has_secret=False), SENDING, refused("no_secret")),
            f"{WITHOUT} {REFUSED}",
        ),
        (
            facts(RECEIVING, ExporterFacts(name="otlp_grpc", state="retrying", waiting=12)),
            "Receiving. Last config change 4 minutes ago. otlp_grpc is retrying: 12 records wait.",
        ),
        (
            facts(RECEIVING, ExporterFacts(name="file", state="blocked", waiting=None)),
            "Not delivering to file, which is blocked. Receiving. Last config change 4 minutes ago.",
        ),
        (
            replace(facts(RECEIVING), dead_letters=1, reasons={"queue_full": "too much waits"}),
            "Not receiving: too much waits. 1 dead letter held.",
        ),
    ],
)
def test_one_sentence_says_how_it_is(found: Facts, said: str) -> None:
    assert sentence(found) == said


def test_the_steps_of_the_set_up_end_when_a_change_is_delivered() -> None:
    fresh = replace(RECEIVER, has_secret=False)
    nothing = replace(SENDING, delivered=0)
    assert [step.is_done for step in steps(facts(fresh, nothing))] == [False] * 5
    assert [step.text for step in steps(facts(fresh, nothing)) if step.is_current] == [
        "A request, such as Statsig's URL verification, reaches the URL that ends with /hook"
    ]
    verified = replace(fresh, answers={"url_verification": 1})
    assert [step.is_current for step in steps(facts(verified, nothing))] == [False, True, False, False, False]
    secret = replace(verified, has_secret=True)
    assert [step.is_current for step in steps(facts(secret, nothing))] == [False, False, True, False, False]
    # A webhook with another secret has reached the URL, so what is missing is a valid signature.
    wrong = replace(RECEIVER, answers={"signature_wrong": 3})
    assert [step.text for step in steps(facts(wrong, nothing)) if step.is_current] == ["A signed webhook is accepted"]
    signed = replace(secret, last_verified=NOW)
    assert [step.is_current for step in steps(facts(signed, nothing))] == [False, False, False, True, False]
    assert [step.is_current for step in steps(facts(RECEIVING, nothing))] == [False, False, False, False, True]
    assert steps(facts(RECEIVING)) == []
    # A service that was restarted sees no verification again, and none is needed.
    assert [step.is_done for step in steps(facts(replace(signed, answers={}), nothing))][:3] == [True] * 3


def test_what_to_check_comes_with_each_trouble() -> None:
    blocked = ExporterFacts(name="otlp_http", state="blocked", waiting=2, last_error="401 from http://b")
    found = troubles(facts(RECEIVER, blocked, refused("timestamp_outside_tolerance", "the webhook is 420 s old")))
    assert [one.title for one in found] == [
        "otlp_http is blocked: 401 from http://b",
        "3 requests were refused: the webhook's time is too far from this machine's clock",
    ]
    assert found[0].check.endswith("tries again by itself; Try now does it at once. Waiting: 2 records. None is lost.")
    (without_queue,) = troubles(facts(RECEIVER, replace(blocked, waiting=None)))
    assert without_queue.check.endswith("and reload. The next webhook is a try.")
    assert found[1].check.startswith("The webhook is 420 s old. Compare this machine's clock")


def test_webhooks_without_a_change_are_named() -> None:
    receiver = replace(RECEIVER, last_verified=NOW, ignored={"other": 2, "statsig::gate_exposure": 500})
    (only,) = troubles(facts(receiver))
    assert only.title == ("No new config change has come to statsig, only 502 other events (statsig::gate_exposure)")
    assert "Filters" in only.check
    assert troubles(facts(replace(receiver, last_change=NOW))) == []


def test_a_secret_that_was_right_before_is_said_to_have_been() -> None:
    (first,) = troubles(facts(RECEIVER, SENDING, refused("signature_wrong")))
    (later,) = troubles(facts(RECEIVING, SENDING, refused("signature_wrong")))
    assert first.title == later.title == "3 requests were refused: the signature does not match"
    assert first.check.endswith("If they are the same, a proxy changes the body on the way.")
    assert later.check.startswith("Webhooks before had the right signature. Was the webhook's secret made anew,")


def test_only_what_the_answer_means_has_to_be_repaired() -> None:
    def repair(error: str) -> str:
        (only,) = troubles(facts(RECEIVING, ExporterFacts(name="a", state="blocked", last_error=error)))
        return only.check.partition(", and reload.")[0]

    for error in ("HTTP 401 Unauthorized from http://b", "UNAUTHENTICATED: no"):
        assert repair(error) == "Replace the key (headers)"
    for error in ("HTTP 403 Forbidden from http://b", "PERMISSION_DENIED: no"):
        assert repair(error) == "Let the key (headers) write logs, or replace it"
    for error in ("HTTP 404 Not Found from http://b", "UNIMPLEMENTED: no"):
        assert repair(error) == "Correct the address (endpoint)"
    for error in ("", "HTTP 302 Found from http://b"):
        assert repair(error) == "Repair the key (headers), the address (endpoint) or the certificate (tls)"


def test_what_came_instead_of_a_change_decides_what_to_check() -> None:
    def advice(**found: object) -> str:
        (only,) = troubles(facts(replace(RECEIVER, last_verified=NOW, **found)))  # type: ignore[arg-type]
        return only.check

    assert advice(invalid=3) == "No record could be made of the invalid ones: the dead letters below say why."
    assert advice(duplicates=3) == "Duplicates are changes that were accepted before."
    assert advice(ignored={"statsig::config_change": 3}) == "The receiver's own filter drops changes."
    assert advice(ignored={"other": 1}) == advice() == advice(ignored={"a": 1})
    assert "choose Config Changes" in advice()
    assert advice(ignored={"a": 1, "statsig::config_change": 1}).endswith("The receiver's own filter drops changes.")


def test_only_what_a_backend_mends_is_passing() -> None:
    exporters = [ExporterFacts(name=state, state=state, waiting=1) for state in ("retrying", "refused", "blocked")]
    found = troubles(replace(facts(RECEIVING), exporters=exporters))
    assert [(one.title.split()[0], one.is_passing) for one in found] == [
        ("refused", False),
        ("blocked", False),
        ("retrying", True),
    ]


def test_refusals_of_before_the_last_good_webhook_are_over() -> None:
    assert troubles(facts(RECEIVING, SENDING, refused("signature_wrong", before=300))) == []
    assert troubles(facts(RECEIVER, SENDING, refused("signature_wrong", before=4000))) == []
    assert troubles(facts(RECEIVING, SENDING, refused("not_found", receiver=""))) == []
    assert troubles(facts(RECEIVER, SENDING, refused("signature_wrong", before=700))) == [], "of an earlier service"


def test_not_more_is_listed_than_a_person_reads() -> None:
    requests = [refused(reason) for reason in [*REASONS, "of an embedder"]]
    assert len(troubles(facts(RECEIVER, SENDING, *requests))) == 8


def test_each_reason_of_ours_has_a_sentence() -> None:
    known = {reason for reason, status in RECEIVER_REASONS.items() if status != 200} | {kind for _, kind in REFUSALS}
    unexplained = known - set(REASONS)
    # Those say all in their detail, which is shown then.
    assert unexplained == {
        *("connect", "content_length", "framing", "gave_way", "header_fields", "header_size", "in_flight_bytes"),
        *("not_running", "slow_consumer", "target_size", "unexpected"),
    }
    assert why("slow_consumer", "the consumer has not answered") == "the consumer has not answered"
    assert (why("odd"), check("odd")) == ("odd", "")
    for clause, advice in REASONS.values():
        assert clause[0].islower() or clause.startswith("Statsig")
        assert not clause.endswith(".")
        assert advice.endswith(".")


def test_changes_that_never_came_are_told_for_a_day_with_what_to_do() -> None:
    missing = facts(replace(RECEIVING, missed=3, last_missed=(("layout_v2", NOW - 720), ("banner", NOW - 7200))))
    title = "2 changes of the last day in Statsig's audit log never came to statsig"
    assert sentence(missing) == (
        f"{title}, the last one layout_v2, changed 12 minutes ago. Receiving. Last config change 4 minutes ago."
    )
    (trouble,) = troubles(missing)
    assert trouble.title == title
    assert trouble.check.startswith(
        "The last ones: layout_v2, 12 minutes ago; banner, 2 hours ago. `statsig-otel reconcile` shows them"
    )
    earlier = facts(replace(RECEIVING, missed=1))
    assert not troubles(earlier)
    assert sentence(earlier) == "Receiving. Last config change 4 minutes ago."
