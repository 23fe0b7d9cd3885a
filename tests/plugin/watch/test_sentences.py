"""The sentences about a service as a whole: docs/troubleshooting.md explains each, and the first one fits the rest."""

import re
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from statsig_otel._telemetry import EXPORTER_STATES, NOT_CONFIGURED
from statsig_otel.exporters.delivery.facts import ExporterFacts
from statsig_otel.plugin.watch.diagnosis import sentences, summary, troubles
from statsig_otel.plugin.watch.facts import Facts, ReceiverFacts
from tests.plugin.watch.test_diagnosis import NOW, RECEIVER, RECEIVING, SENDING, facts, refused


def _explained() -> list[re.Pattern[str]]:
    """The sentences of the table in docs/troubleshooting.md; `...` is a part that varies."""
    page = (Path(__file__).parents[3] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?`) \| ", page.split("## Each sentence at the top")[1], re.MULTILINE)
    found = [sentence for row in rows for sentence in re.findall(r"`([^`]+)`", row)]
    return [re.compile(".*".join(map(re.escape, sentence.split("...")))) for sentence in found]


EXPLAINED = _explained()


def test_each_sentence_that_the_docs_explain_is_said() -> None:
    """The most special sentence that fits counts."""
    twins = [replace(RECEIVER, name="a", port=1), replace(RECEIVER, name="b", port=2)]
    well = [replace(RECEIVING, name=one.name, port=one.port) for one in twins]
    accepted = replace(RECEIVER, last_verified=NOW - 7, last_accepted=NOW - 7)
    once = replace(refused("signature_wrong"), run=1)
    lost = refused("queue_full", status=503)
    between = replace(refused("signature_wrong", before=300), follows=True)
    slow = replace(SENDING, waiting=3, oldest=1000.0)
    missed = replace(RECEIVING, missed=1, last_missed=(("layout_v2", NOW - 720),))
    scenes = [
        facts(),
        facts(RECEIVING, slow),
        facts(RECEIVING, SENDING, once),
        facts(RECEIVER, SENDING, refused("signature_wrong")),
        facts(RECEIVING, SENDING, between),
        facts(RECEIVING, SENDING, lost),
        facts(RECEIVING, SENDING, replace(lost, run=1)),
        facts(missed),
        facts(accepted),
        facts(replace(RECEIVER, last_verified=NOW - 7)),
        facts(replace(RECEIVER, has_secret=False)),
        replace(facts(), receivers=twins, requests=[refused("signature_wrong", receiver="a")]),
        replace(facts(), receivers=well, requests=[refused("signature_wrong", receiver="a")]),
        replace(facts(), receivers=[well[0], replace(accepted, name="b"), replace(RECEIVER, name="c")]),
        replace(facts(), set_aside=["queue.db.salvaged-1"], dead_letters=2),
        replace(facts(), exporters=[SENDING, replace(SENDING, name="x", state="blocked")]),
        *(facts(RECEIVING, replace(SENDING, state=state)) for state in ("retrying", "refused", NOT_CONFIGURED)),
    ]
    found = {
        max((one for one in EXPLAINED if one.fullmatch(said)), key=lambda one: len(one.pattern), default=said)
        for scene in scenes
        for said in sentences(scene)
    }
    assert found == set(EXPLAINED)


_RECEIVERS = st.builds(
    ReceiverFacts,
    name=st.sampled_from(["a", "b", "c"]),
    path=st.just("/hook"),
    has_secret=st.booleans(),
    last_verified=st.sampled_from([0.0, NOW - 5, NOW - 90_000]),
    last_accepted=st.sampled_from([0.0, NOW - 5, NOW - 90_000]),
    last_change=st.sampled_from([0.0, NOW - 5, NOW - 90_000]),
    ignored=st.sampled_from([{}, {"statsig::gate_exposure": 3}]),
)
_REQUESTS = st.builds(
    replace,
    st.sampled_from([refused("signature_wrong"), refused("queue_full", status=503), refused("method", status=405)]),
    receiver=st.sampled_from(["", "a", "b"]),
    last=st.sampled_from([NOW - 1, NOW - 7200, NOW - 90_000]),
    follows=st.booleans(),
)


@given(
    st.builds(
        Facts,
        now=st.just(NOW),
        since=st.just(NOW - 100_000),
        receivers=st.lists(_RECEIVERS, max_size=3, unique_by=lambda one: one.name),
        exporters=st.lists(
            st.builds(
                ExporterFacts,
                name=st.just("x"),
                state=st.sampled_from([*EXPORTER_STATES, NOT_CONFIGURED]),
                waiting=st.sampled_from([None, 0, 2]),  # None without a queue
            )
        ),
        requests=st.lists(_REQUESTS, max_size=4),
        dead_letters=st.integers(0, 1),
        reasons=st.sampled_from([{}, {"disk_full": "the disk is full"}]),
        set_aside=st.sampled_from([[], ["queue.db.salvaged-1"]]),
    )
)
def test_the_first_sentence_and_what_to_check_agree(found: Facts) -> None:
    """Whatever is so: the first sentence is a fault if one can't wait, and none if there is nothing to check.

    And docs/troubleshooting.md explains each sentence.
    """
    for said in sentences(found):
        assert any(one.fullmatch(said) for one in EXPLAINED), said
    listed = troubles(found)
    first = summary(found)
    is_well = first.startswith(("Receiving.", "Ready.", "No webhook was accepted since the start"))
    if any(not one.can_wait for one in listed):
        assert not is_well, first
    if not listed:
        assert is_well, first
