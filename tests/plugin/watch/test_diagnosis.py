"""What the page says of a service, for each condition it can be in."""

from dataclasses import replace
from itertools import product
from typing import Any

from statsig_otel._journal import RequestEntry
from statsig_otel.exporters.delivery.facts import ExporterFacts
from statsig_otel.exporters.wording import ago
from statsig_otel.plugin.watch.diagnosis import summary, troubles
from statsig_otel.plugin.watch.facts import Facts, ReceiverFacts
from statsig_otel.plugin.watch.reasons import WORDS_OF, why
from statsig_otel.plugin.watch.steps import steps
from tests.looped import looped

REFUSED = "3 requests were refused, the last 10 seconds ago."
NOW = 1_800_000_000.0
RECEIVER = ReceiverFacts(name="statsig", path="/hook")
RECEIVING = replace(RECEIVER, last_verified=NOW - 240, last_accepted=NOW - 240, last_change=NOW - 240)
SENDING = ExporterFacts(name="otlp_grpc", delivered=1)


def facts(receiver: ReceiverFacts = RECEIVER, exporter: ExporterFacts = SENDING, *requests: RequestEntry) -> Facts:
    return Facts(now=NOW, since=NOW - 600, receivers=[receiver], exporters=[exporter], requests=requests)


def refused(
    reason: str, detail: str = "", *, before: float = 10, receiver: str = "statsig", status: int = 401, **keys: Any
) -> RequestEntry:
    """Three refused requests: two within a second, of which only the last one was so many seconds before."""
    return RequestEntry(receiver, status, reason, detail, NOW - before - 0.9, 2, last=NOW - before, run=3, **keys)


LATE = "the webhook is 7 min old, and timestamp_tolerance is 5 min: something holds webhooks back"
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
            facts(replace(RECEIVER, last_verified=NOW - 7, last_accepted=NOW - 7)),
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
            "Not receiving: too much waits. 1 dead letter kept.",
        ),
    ],
)
def test_one_sentence_says_how_it_is(found: Facts, said: str) -> None:
    assert summary(found) == said


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
    assert [step.is_current for step in steps(facts(signed, nothing))] == [False, False, True, False, False]
    signed = replace(signed, last_accepted=NOW)
    assert [step.is_current for step in steps(facts(signed, nothing))] == [False, False, False, True, False]
    assert [step.is_current for step in steps(facts(RECEIVING, nothing))] == [False, False, False, False, True]
    assert steps(facts(RECEIVING)) == []
    # A service that was restarted sees no verification again, and none is needed.
    assert [step.is_done for step in steps(facts(replace(signed, answers={}), nothing))][:3] == [True] * 3


def test_what_to_check_comes_with_each_trouble() -> None:
    blocked = ExporterFacts(name="otlp_http", state="blocked", waiting=2, last_error="401 from http://b")
    found = troubles(facts(RECEIVER, blocked, refused("timestamp_outside_tolerance", LATE)))
    assert [one.title for one in found] == [
        "3 requests were refused: wrong time: the webhook is 7 min old",
        "otlp_http is blocked: 401 from http://b",
    ]
    assert found[1].check.endswith("tries again by itself; Try now does it at once. What waits is kept: 2 records.")
    (without_queue,) = troubles(facts(RECEIVER, replace(blocked, waiting=None)))
    assert without_queue.check.endswith("run `statsig-otel reload`. The next webhook tries again.")
    assert found[0].check.startswith(
        "timestamp_tolerance is 5 min: something holds webhooks back. Compare this machine's"
    )


def test_webhooks_without_a_change_are_named() -> None:
    receiver = replace(
        RECEIVER, last_verified=NOW, last_accepted=NOW, ignored={"other": 2, "statsig::gate_exposure": 500}
    )
    (only,) = troubles(facts(receiver))
    assert only.title == (
        "No new config change has come to receiver statsig, only 502 other events (statsig::gate_exposure)"
    )
    assert "Filters" in only.check
    assert only.can_wait, "perhaps nothing has changed yet"
    assert troubles(facts(replace(receiver, last_change=NOW))) == []


def test_a_secret_that_was_right_before_is_said_to_have_been() -> None:
    (first,) = troubles(facts(RECEIVER, SENDING, refused("signature_wrong")))
    (later,) = troubles(facts(RECEIVING, SENDING, refused("signature_wrong")))
    assert first.title == later.title == "3 requests were refused: the signature does not match"
    assert "If they are the same, perhaps a proxy changes the body" in first.check
    assert later.check.startswith("Webhooks before had the right signature. Was a new secret generated")


def test_what_an_exporter_says_has_to_be_done() -> None:
    def repair(hint: str) -> str:
        (only,) = troubles(
            facts(RECEIVING, ExporterFacts(name="mine", state="blocked", last_error="HTTP 401", hint=hint))
        )
        return only.check.partition(". After an edit run `statsig-otel reload`.")[0]

    assert repair("replace the key (headers)") == "Replace the key (headers)"
    assert repair("") == "Repair what is said there"


def test_what_came_instead_of_a_change_decides_what_to_check() -> None:
    def advice(**found: object) -> str:
        (only,) = troubles(facts(replace(RECEIVER, last_verified=NOW, last_accepted=NOW, **found)))  # type: ignore[arg-type]
        return only.check

    assert advice(invalid=3) == "No record could be made of the invalid ones: the dead letters below say why."
    assert advice(duplicates=3) == "Duplicates are changes that were accepted before."
    assert advice(ignored={"statsig::config_change": 3}) == "The receiver's own filter drops changes."
    assert advice(ignored={"other": 1}) == advice() == advice(ignored={"a": 1})
    assert "choose Config Changes" in advice()
    assert advice(ignored={"a": 1, "statsig::config_change": 1}).endswith("The receiver's own filter drops changes.")


def test_only_what_a_backend_mends_or_what_is_kept_can_wait() -> None:
    exporters = [ExporterFacts(name=state, state=state, waiting=1) for state in ("retrying", "refused", "blocked")]
    found = troubles(replace(facts(RECEIVING), exporters=exporters, dead_letters=4))
    assert [(one.title.split()[0], one.can_wait) for one in found] == [
        ("refused", False),
        ("blocked", False),
        ("retrying", True),
        ("4", True),
    ]
    assert found[-1].title == "4 dead letters kept"
    assert found[-1].check.endswith("and replay it, or drop it.")


def test_refusals_of_before_the_last_good_webhook_are_over() -> None:
    assert troubles(facts(RECEIVING, SENDING, refused("signature_wrong", before=300))) == []
    early = replace(facts(RECEIVER, SENDING, refused("signature_wrong", before=86_401)), since=NOW - 90_000)
    assert troubles(early) == [], "it is not news"
    assert summary(early).startswith("Ready. ")
    assert len(troubles(facts(RECEIVER, SENDING, refused("signature_wrong", before=599.5)))) == 1, "it began before"
    assert len(troubles(replace(early, now=NOW - 2))) == 1
    assert troubles(facts(RECEIVING, SENDING, refused("not_found", receiver=""))) == []
    assert troubles(facts(RECEIVER, SENDING, refused("signature_wrong", before=700))) == [], "of an earlier service"


def test_a_refusal_is_over_once_its_own_receiver_has_accepted_a_webhook_after_it() -> None:
    """For each of three receivers, whatever the others have: one order of its last refusal and its last webhook."""
    names = ("a", "b", "c")
    orders = {"never": (0.0, False), "before": (NOW - 20, False), "after": (NOW - 5, True)}
    for chosen in product(orders, repeat=len(names)):
        receivers = [
            replace(
                RECEIVER, name=name, path=f"/{name}", last_verified=orders[order][0], last_accepted=orders[order][0]
            )
            for name, order in zip(names, chosen, strict=True)
        ]
        requests = [refused("signature_wrong", receiver=name) for name in names]
        found = replace(facts(RECEIVER, SENDING, *requests), receivers=receivers)
        listed = {one.title: one.check for one in troubles(found) if one.is_past}
        said = summary(found)
        for name, order in zip(names, chosen, strict=True):
            title = f"3 requests to {name} were refused: the signature does not match"
            assert (title in listed) is not orders[order][1]
            state = {"never": "not receiving", "before": "refusing requests", "after": ""}[order]
            assert (f"{name} is {state or 'not receiving'}: the signature does not match." in said) is bool(state)
            if state:
                assert listed[title].startswith("Webhooks before had") is (order == "before")


def test_an_entry_that_goes_on_after_a_good_webhook_is_not_over() -> None:
    """Its first request came before the webhook, and its last one after it, in the same second."""
    for last_accepted, is_listed in ((NOW - 10.5, True), (NOW - 10, True), (NOW - 9.5, False)):
        receiver = replace(RECEIVING, last_verified=last_accepted, last_accepted=last_accepted)
        assert bool(troubles(facts(receiver, SENDING, refused("signature_wrong")))) is is_listed


def test_a_webhook_that_was_answered_with_5xx_is_told_for_a_day_whatever_comes_later() -> None:
    consumer = ("exporter_failed", "not_kept", "slow_consumer", "of an embedder")
    for reason in ("queue_full", "disk_full", "storage_failed", *consumer):
        for before in (1, 10, 7200, 86_399):
            lost = refused(reason, status=503, before=before)
            found = facts(replace(RECEIVING, last_accepted=NOW, last_change=NOW), SENDING, lost)
            (only,) = troubles(found)
            assert only.title == f"3 webhooks were answered with 503: {why(reason)}"
            assert "Statsig may not send such a webhook again: `statsig-otel reconcile` shows" in only.check
            assert not only.can_wait
            assert summary(found) == (
                f"3 webhooks were answered with 503, the last {ago(before)}: Statsig may not send them again. "
                "Receiving. Last config change just now."
            )
        assert troubles(facts(RECEIVING, SENDING, refused(reason, status=503, before=86_401))) == []
    two = [refused("queue_full", status=503, before=99), refused("unexpected", status=500, before=20)]
    assert summary(facts(replace(RECEIVING, last_accepted=NOW), SENDING, *two)).startswith(
        "6 webhooks were answered with 500 or 503, the last 20 seconds ago: Statsig may not send them again. Receiving."
    )


def test_a_body_that_strangers_can_send_is_not_called_a_lost_webhook() -> None:
    (only,) = troubles(facts(RECEIVER, SENDING, refused("in_flight_bytes", "too many bodies", status=503)))
    assert only.title == "3 requests were refused: too many bodies"
    assert troubles(facts(replace(RECEIVING, last_accepted=NOW), SENDING, refused("in_flight_bytes", status=503))) == []
    assert troubles(facts(RECEIVING, SENDING, refused("unexpected", receiver="", status=500))) == []


def test_a_webhook_that_was_not_accepted_is_not_called_empty() -> None:
    for reason, status in (("queue_full", 503), ("exporter_failed", 503), ("not_json", 400), ("unknown_shape", 400)):
        nothing = replace(SENDING, delivered=0)
        found = facts(replace(RECEIVER, last_verified=NOW - 10), nothing, refused(reason, status=status))
        (only,) = troubles(found)
        assert why(reason) in only.title
        assert "Filters" not in only.check
        assert summary(found).startswith(f"Not receiving: {why(reason)}. 3 ")
        assert "config change" not in summary(found), "one may have come, and was not accepted"
        assert [step.text for step in steps(found) if step.is_current] == ["A signed webhook is accepted"]


def test_a_refusal_by_the_server_is_that_of_the_receivers_on_its_port() -> None:
    def found(*receivers: ReceiverFacts, port: int) -> tuple[str, list[str]]:
        entry = refused("not_found", receiver="", status=404, port=port)
        several = replace(facts(RECEIVER, SENDING, entry), receivers=receivers)
        return summary(several), [one.title for one in troubles(several)]

    fresh, taking = replace(RECEIVER, name="fresh", port=2), replace(RECEIVING, name="taking", port=1)
    said, (title,) = found(taking, fresh, port=2)
    assert said.startswith("Port 2 is not receiving: wrong path. 3 requests to port 2 were refused, ")
    assert title == "3 requests to port 2 were refused: wrong path"
    for port in (1, 3):  # noise of a public address, and a port of somebody else
        said, titles = found(taking, fresh, port=port)
        assert said == (
            "Receiving. Last config change 4 minutes ago. "
            "Nothing with a valid signature has come to receiver fresh since the start."
        )
        assert titles == []
    shared = replace(fresh, port=1)
    said, (title,) = found(taking, shared, port=1)
    assert said.startswith("Refusing requests: wrong path. 3 requests were refused, ")
    assert found(replace(taking, port=0), replace(fresh, port=0), port=9)[1] == [title]  # a server of an embedder


def test_where_only_this_machine_reaches_the_port_the_sender_is_a_proxy_on_it() -> None:
    def advice(url: str, reason: str) -> str:
        entry = refused(reason, receiver="", status=404, port=1)
        (only,) = troubles(facts(replace(RECEIVER, url=url), SENDING, entry))
        return only.check

    here = "Only this machine reaches this port, so a proxy or a tunnel on it is most likely the sender. "
    for reason, said in (
        ("not_found", "Correct the webhook's URL"),
        ("tls", "Let the proxy in front speak plain HTTP"),
    ):
        for host in ("127.0.0.1:80", "localhost:80", "[::1]:80"):
            assert advice(f"http://{host}/hook", reason).startswith(f"{here}{said}")
        for url in ("http://0.0.0.0:80/hook", "https://127.example.com/hook", ""):
            assert advice(url, reason).startswith(said)


def test_requests_of_scanners_are_not_counted_with_those_for_a_wrong_path_and_are_named() -> None:
    def found(*others: RequestEntry) -> tuple[str, str]:
        entry = refused("not_found", "the path is /hook", receiver="", status=404, port=1, path="/x; y")
        (only,) = troubles(facts(RECEIVER, SENDING, entry, *others))
        return only.title, only.check

    scanner = refused("method", receiver="", status=404, port=1)
    title, said = found(scanner)
    assert title == "3 requests were refused: wrong path: a request came to /x; y"
    assert said.startswith("The path is /hook. Correct")
    assert said.endswith(" Not counted here: 3 requests with another method, as scanners send them.")
    for others in ((), (replace(scanner, port=2),), (refused("no_secret", receiver="other"),)):
        assert "Not counted" not in found(*others)[1]


def test_the_right_path_on_the_port_of_another_receiver_is_called_a_wrong_port() -> None:
    a, b = (replace(RECEIVER, name=name, path=f"/{name}", port=port) for name, port in (("a", 1), ("b", 2)))
    crossed = [
        refused("not_found", "try another", receiver="", status=404, port=port, path=path)
        for path, port in (("/b", 1), ("/a", 2), ("/c", 2))
    ]
    found = troubles(replace(facts(RECEIVER, SENDING, *crossed), receivers=[a, b]))
    assert [one.title for one in found] == [
        "3 requests to port 1 were refused: wrong port",
        "3 requests to port 2 were refused: wrong port",
        "3 requests to port 2 were refused: wrong path: a request came to /c",
    ]
    assert found[0].check.startswith("/b is the path of b, which listens on port 2. Correct the port")
    assert found[2].check.startswith("Try another. Correct the webhook's URL")


def test_the_receivers_that_lack_a_secret_are_named() -> None:
    bare = [replace(RECEIVER, name=name, has_secret=False) for name in ("b", "c")]
    for without, said in ((bare[:1], "b has no signing secret yet: it only answers"), (bare, "b, c have no signing")):
        found = replace(facts(RECEIVING), receivers=[RECEIVING, *without])
        assert summary(found).startswith(said)
        (current,) = (step.text for step in steps(found) if step.is_current)
        assert current == f"A signing secret is set for {', '.join(one.name for one in without)}"


def test_a_refusal_that_lasts_says_what_to_do() -> None:
    reasons = {"queue_full": "2 records wait", "certificate_expired": "it has expired", "not_running": "it has failed"}
    found = troubles(replace(facts(RECEIVING), reasons=reasons))
    assert [one.title for one in found] == ["Webhooks are refused"] * 3
    for one, reason in zip(found, reasons.values(), strict=True):
        said, _, advice = one.check.partition(". ")
        assert said == reason
        assert advice.endswith(".")


def test_refusals_of_many_kinds_do_not_push_out_what_else_is_wrong() -> None:
    requests = [refused(reason) for reason in [*WORDS_OF, "of an embedder"]]
    blocked = [ExporterFacts(name=f"otlp_http/{number}", state="blocked") for number in range(9)]
    found = troubles(replace(facts(RECEIVER, SENDING, *requests), exporters=blocked))
    assert len(found) == 5 + 9
    assert sum(one.title.startswith("otlp_http/") for one in found) == 9


def test_an_exporter_that_is_slow_is_behind_after_a_quarter_of_an_hour() -> None:
    slow = ExporterFacts(name="otlp_grpc", state="sending", waiting=70_000, oldest=7300, delivered=1)
    (only,) = troubles(facts(RECEIVING, slow))
    assert (only.title, only.can_wait) == ("otlp_grpc is behind: 70000 records wait, the oldest for 2 h", True)
    assert summary(facts(RECEIVING, slow)) == (
        "Receiving. Last config change 4 minutes ago. otlp_grpc is behind: 70000 records wait."
    )
    assert troubles(facts(RECEIVING, replace(slow, oldest=899))) == []
    (only,) = troubles(facts(RECEIVING, replace(slow, state="retrying")))
    assert only.title.startswith("otlp_grpc is retrying: ")
    assert only.check.startswith("The backend does not answer, fails, or asks to wait. ")


def test_the_hint_of_an_exporter_that_retries_is_told_instead_of_its_backend() -> None:
    full = replace(SENDING, state="retrying", last_error="the queue's file: full", hint="look at the disk")
    (only,) = troubles(facts(RECEIVING, full))
    assert only.check.startswith("Look at the disk. The service tries again by itself")


def test_a_receiver_without_a_secret_is_listed_once() -> None:
    bare = replace(RECEIVER, has_secret=False)
    (only,) = troubles(facts(bare))
    assert (only.title, only.can_wait) == ("statsig has no signing secret yet", True)
    assert only.check.startswith("Copy the webhook's signing secret")
    (only,) = troubles(facts(bare, SENDING, refused("no_secret")))
    assert only.title == "3 requests were refused: no signing secret is set yet"


def test_refusals_between_accepted_webhooks_are_told_for_an_hour() -> None:
    """For example of a second webhook with this URL and another secret, or of bodies that are too large."""
    now_and_then = replace(RECEIVING, last_accepted=NOW)
    for reason in ("signature_wrong", "too_large", "content_encoding", "timestamp_outside_tolerance", "slow_body"):
        found = facts(now_and_then, SENDING, replace(refused(reason), follows=True))
        (only,) = troubles(found)
        assert (only.title, only.can_wait) == (f"Some requests are refused: {why(reason)}", True)
        assert only.check.startswith("Webhooks before and after it were accepted. ")
        assert summary(found) == (
            f"Receiving. Last config change 4 minutes ago. Some requests are refused: {why(reason)}."
        )
    for entry in (
        refused("signature_wrong"),  # before the first accepted one: it was repaired
        replace(refused("signature_wrong", before=3601), follows=True),
        replace(refused("signature_missing"), follows=True),  # strangers
        replace(refused("method"), follows=True),
    ):
        found = replace(facts(now_and_then, SENDING, entry), since=NOW - 9000)
        assert troubles(found) == []
        assert summary(found) == "Receiving. Last config change 4 minutes ago."


def test_a_browser_that_opens_the_url_is_no_news_once_a_webhook_was_accepted() -> None:
    assert troubles(facts(RECEIVING, SENDING, refused("method", status=405))) == []
    assert troubles(facts(RECEIVER, SENDING, refused("method", receiver="", status=404))) == [], "a scanner"
    (only,) = troubles(facts(RECEIVER, SENDING, refused("method", status=405)))
    assert only.title == "3 requests were refused: the method is not POST"


def test_a_receiver_to_which_nothing_or_no_change_comes_is_named_though_others_receive() -> None:
    silent, exposed = replace(RECEIVER, name="silent"), replace(RECEIVER, name="exposed", last_verified=NOW)
    exposed = replace(exposed, last_accepted=NOW, ignored={"statsig::gate_exposure": 9})
    found = replace(facts(RECEIVING), receivers=[RECEIVING, silent, exposed])
    assert summary(found) == (
        "No new config change has come to receiver exposed, only 9 other events. Receiving. "
        "Last config change 4 minutes ago. Nothing with a valid signature has come to receiver silent since the start."
    )
    wrong = refused("signature_wrong", receiver="silent")
    assert "receiver silent" not in summary(replace(found, requests=[wrong])), "what has come is said"


def test_what_was_delivered_or_waits_proves_the_steps_before_it() -> None:
    """After a restart, before the next webhook."""
    assert steps(facts(RECEIVER)) == []
    (current,) = (one.text for one in steps(facts(RECEIVER, ExporterFacts(name="a", waiting=1))) if one.is_current)
    assert current == "A change is delivered"


def test_changes_that_never_came_are_told_for_a_day_with_what_to_do() -> None:
    missing = facts(replace(RECEIVING, missed=3, last_missed=(("layout_v2", NOW - 720), ("banner", NOW - 7200))))
    title = "2 changes of the last day in Statsig's audit log never came to receiver statsig"
    assert summary(missing) == (
        f"{title}, the last one layout_v2, changed 12 minutes ago. Receiving. Last config change 4 minutes ago."
    )
    (trouble,) = troubles(missing)
    assert trouble.title == title
    assert trouble.check.startswith(
        "The last ones: layout_v2, 12 minutes ago; banner, 2 hours ago. `statsig-otel reconcile` shows them"
    )
    earlier = facts(replace(RECEIVING, missed=1))
    assert not troubles(earlier)
    assert summary(earlier) == "Receiving. Last config change 4 minutes ago."
