"""Why a request was refused, and what to check, by the reason of its answer."""

from statsig_otel.plugin.receiver.counting import STATUS_OF
from statsig_otel.plugin.server.reader import REFUSALS
from statsig_otel.plugin.watch.reasons import WORDS_OF, check, why


def test_each_reason_of_ours_has_a_sentence() -> None:
    known = {reason for reason, status in STATUS_OF.items() if status != 200} | {kind for _, kind in REFUSALS}
    unexplained = known - set(WORDS_OF)
    # Those say all in their detail, which is shown then.
    assert unexplained == {
        *("connect", "content_length", "framing", "gave_way", "header_fields", "header_size", "in_flight_bytes"),
        *("not_running", "slow_consumer", "target_size"),
    }
    assert why("slow_consumer", "the consumer has not answered") == "the consumer has not answered"
    assert (why("odd"), check("odd")) == ("odd", "")
    for clause, advice in WORDS_OF.values():
        assert clause[0].islower() or clause.startswith("Statsig")
        assert not clause.endswith(".")
        assert advice.endswith(".")


def test_a_headline_names_the_path_and_by_how_much_a_time_is_wrong_and_what_to_check_does_not_repeat_it() -> None:
    future = "the webhook is 9 h in the future, and timestamp_tolerance is 5 min: this machine's clock is slow"
    assert why("timestamp_outside_tolerance", future) == "wrong time: the webhook is 9 h in the future"
    said = check("timestamp_outside_tolerance", future)
    assert said.startswith("timestamp_tolerance is 5 min: this machine's clock is slow. Compare this machine's clock")
    assert "holds webhooks back" not in said, "a delay can't make a time of the future"
    path = "the receiver's path is /hook"
    assert why("not_found", path, "/a; b") == "wrong path: a request came to /a; b"
    assert check("not_found", path).startswith("The receiver's path is /hook. Correct")
    assert (why("not_found"), why("timestamp_outside_tolerance")) == ("wrong path", "wrong time")
    assert why("method", "only POST is answered with 200; a browser sends GET") == "the method is not POST"


def test_details_are_sentences_that_end_once() -> None:
    assert check("tls_handshake", "does it trust the chain?").startswith("Does it trust the chain? Check")
    assert check("exporter_failed", "otlp_http retry later: 503").startswith("otlp_http retry later: 503. Repair")
