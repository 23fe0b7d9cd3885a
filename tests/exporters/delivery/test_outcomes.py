"""What a sender does with each outcome: order, halving, dead letters, and a blocked exporter."""

import random
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import settings as limited
from hypothesis import strategies as st

from tests.exporters.delivery.helpers import (
    SLOW,
    Backend,
    Kind,
    named,
    names_in,
    refusing,
    rig,
    settings,
)
from tests.waiting import wait_until


def test_what_waits_is_delivered_in_order_in_full_batches(tmp_path: Path, backend: Backend) -> None:
    names = named(1200)
    with rig(tmp_path, backend.exporter()) as made:
        made.put(*names)
        made.start()
        made.drained()
        assert backend.taken == names
        assert [len(batch) for batch, _ in backend.calls] == [512, 512, 176]
        made.put("later")
        made.drained()
        wait_until(lambda: made.sender.state == "idle")
        assert backend.taken == [*names, "later"]
        assert made.dead_letters() == []
        assert (made.sender.attempts, made.sender.last_error) == (0, "")


def test_a_passing_fault_is_tried_again_until_it_has_passed(tmp_path: Path, backend: Backend) -> None:
    backend.rule = lambda names: "later" if len(backend.calls) < 5 else "delivered"
    with rig(tmp_path, backend.exporter()) as made:
        made.put(*named(3))
        made.start()
        wait_until(lambda: made.sender.state == "retrying")
        assert "out for lunch" in made.sender.last_error
        made.drained()
        assert [kind for _, kind in backend.calls] == ["later"] * 5 + ["delivered"]
        assert made.dead_letters() == []


def test_while_a_backend_is_away_all_that_it_took_before_is_ticked_off_on_disk(tmp_path: Path, http: Backend) -> None:
    """A restart during an outage repeats nothing."""
    names = named(20)
    http.rule = lambda _: "delivered" if len(http.calls) < 7 else "later"
    with rig(tmp_path, http.exporter(), settings(max_records=2, retry=SLOW)) as made:
        made.put(*names)
        made.start()
        wait_until(lambda: made.sender.state == "retrying")
        wait_until(lambda: made.queue.states()[0].waiting == 6, "the ticks of seven batches")
        assert made.waiting() == 6


@pytest.mark.parametrize("backend", ["http", pytest.param("grpc", marks=pytest.mark.slow)], indirect=True)
def test_a_backend_that_asks_for_time_gets_it(tmp_path: Path, backend: Backend) -> None:
    backend.rule = lambda names: "delivered" if backend.calls else "later in 1 s"
    with rig(tmp_path, backend.exporter()) as made:
        made.put("a")
        made.start()
        made.drained()
        first, second = backend.times
        assert second - first >= 0.99


@pytest.mark.parametrize("bad", [["r0250"], ["r0000"], ["r0500"], ["r0000", "r0001", "r0100", "r0498", "r0499"]])
def test_refused_records_of_a_batch_are_found_and_all_others_delivered_in_order(
    tmp_path: Path, backend: Backend, bad: list[str]
) -> None:
    names = named(501)
    backend.rule = refusing(bad)
    with rig(tmp_path, backend.exporter()) as made:
        made.put(*names)
        made.start()
        made.drained()
        assert backend.taken == [name for name in names if name not in bad]
        assert made.dead_letter_names() == bad
        assert {dead_letter.kind for dead_letter in made.dead_letters()} == {"record"}
        assert all(9 <= dead_letter.attempts <= 11 for dead_letter in made.dead_letters())
        assert len(backend.calls) <= 1 + (2 * 9 + 1) * len(bad)


@pytest.mark.parametrize("count", [2, 15])
def test_where_every_record_is_refused_nothing_leaves_the_queue(tmp_path: Path, http: Backend, count: int) -> None:
    """It isn't the data, so none becomes a dead letter; once it is mended, all are delivered."""
    names = named(count)
    http.rule = lambda sent: "rejected"
    with rig(tmp_path, http.exporter()) as made:
        made.put(*names)
        made.start()
        wait_until(lambda: made.sender.attempts >= 3)
        assert made.sender.state == "blocked"
        assert made.sender.last_error.startswith("nothing is taken: each record that was sent is refused: HTTP 400")
        assert (made.waiting(), made.dead_letters()) == (count, [])
        http.rule = lambda sent: "delivered"
        made.drained()
        assert sorted(http.taken) == names
        assert made.dead_letters() == []


def test_where_every_record_is_refused_a_full_batch_is_not_asked_one_by_one_again(
    tmp_path: Path, http: Backend
) -> None:
    http.rule = lambda sent: "rejected"
    with rig(tmp_path, http.exporter()) as made:
        made.put(*named(64))
        made.start()
        wait_until(lambda: made.sender.attempts >= 4)
        made.sender.shutdown()
        assert len(http.calls) <= (2 * 64 - 1) + 3 * made.sender.attempts


def test_two_bad_records_alone_wait_until_a_good_one_tells(tmp_path: Path, http: Backend) -> None:
    """All of two refused looks like a backend to mend. A good one behind them shows that it was the data."""
    http.rule = refusing(["bad1", "bad2"])
    with rig(tmp_path, http.exporter()) as made:
        made.put("bad1", "bad2")
        made.start()
        wait_until(lambda: made.sender.attempts >= 2)
        assert (made.sender.state, made.waiting(), made.dead_letters()) == ("blocked", 2, [])
        made.put("good")
        made.drained()
        assert made.dead_letter_names() == ["bad1", "bad2"]
        assert http.taken == ["good"]


def test_small_batches_turn_no_backlog_into_dead_letters(tmp_path: Path, http: Backend) -> None:
    """A record that goes alone for want of room is judged by a probe."""
    names = named(6)
    http.rule = lambda sent: "rejected"
    with rig(tmp_path, http.exporter(), settings(max_records=1)) as made:
        made.put(*names)
        made.start()
        wait_until(lambda: made.sender.attempts >= 3)
        assert (made.waiting(), made.dead_letters()) == (6, [])
        http.rule = refusing(names[:1])
        made.drained()
        assert made.dead_letter_names() == names[:1]
        assert sorted(http.taken) == names[1:], "each once; a probe comes before its turn"
        assert all(len(batch) == 1 for batch, _ in http.calls)


def test_a_corrected_key_before_a_refusing_backend_loses_no_backlog(tmp_path: Path, http: Backend) -> None:
    """While it is blocked the head goes alone; that it is refused then says nothing about the data yet."""
    names = named(20)
    http.rule = lambda sent: "blocked"
    with rig(tmp_path, http.exporter()) as made:
        made.put(*names)
        made.start()
        wait_until(lambda: made.sender.attempts >= 2)
        http.rule = lambda sent: "rejected"
        wait_until(lambda: http.count("rejected") > 45)
        assert (made.waiting(), made.dead_letters()) == (20, [])
        http.rule = lambda sent: "delivered"
        made.drained()
        assert sorted(http.taken) == names


@pytest.mark.parametrize("mended_at", [1, 4, 5, 9, 15])
def test_a_backend_that_is_repaired_during_halving_makes_no_dead_letters(
    tmp_path: Path, http: Backend, mended_at: int
) -> None:
    """What was refused alone before it is settled that it is the data, gets another chance."""
    names = named(8)
    http.rule = lambda sent: "rejected" if len(http.calls) < mended_at else "delivered"
    with rig(tmp_path, http.exporter()) as made:
        made.put(*names)
        made.start()
        made.drained()
        assert sorted(http.taken) == names, "each once"
        assert made.dead_letters() == []


def test_a_partial_success_behind_a_refused_record_is_neither_sent_again_nor_doubled(
    tmp_path: Path, http: Backend
) -> None:
    http.rule = lambda names: "rejected" if {"r0000", "r0001"} & {*names} else "partial"
    with rig(tmp_path, http.exporter()) as made:
        made.put(*named(4))
        made.start()
        made.drained()
        assert http.taken == named(4)[2:]
        assert [(dead_letter.kind, names_in(dead_letter.content)) for dead_letter in made.dead_letters()] == [
            ("record", ["r0000"]), ("record", ["r0001"]), ("batch", ["r0002", "r0003"]),
        ]  # fmt: skip


def test_a_partial_success_is_never_sent_again_and_kept(tmp_path: Path, backend: Backend) -> None:
    backend.rule = lambda names: "partial" if "r0001" in names else "delivered"
    with rig(tmp_path, backend.exporter(), settings(max_records=3)) as made:
        made.put(*named(5))
        made.start()
        made.drained()
        assert [names for names, _ in backend.calls] == [named(3), named(5)[3:]]
        (dead_letter,) = made.dead_letters()
        assert (dead_letter.kind, dead_letter.count, dead_letter.uid, dead_letter.attempts) == ("batch", 3, None, 1)
        assert dead_letter.reason == "1 of 3 were refused: one of them"
        assert names_in(dead_letter.content) == named(3)


def test_a_blocked_exporter_keeps_its_queue_and_delivers_once_the_key_is_right(
    tmp_path: Path, backend: Backend
) -> None:
    names = named(1000)
    backend.rule = lambda sent: "blocked"
    with rig(tmp_path, backend.exporter()) as made:
        made.put(*names)
        made.start()
        wait_until(lambda: made.sender.attempts >= 5)
        assert (made.sender.state, made.waiting(), made.dead_letters()) == ("blocked", 1000, [])
        assert "who are you" in made.sender.last_error
        assert [len(batch) for batch, _ in backend.calls[:4]] == [512, 1, 1, 1], "the head alone tells"
        backend.rule = lambda sent: "delivered"
        made.drained()
        assert backend.taken == names
        assert made.dead_letters() == []


@pytest.mark.parametrize("fault", ["later", "blocked", "broken"])
@pytest.mark.parametrize("at", [3, 12])
def test_a_fault_during_halving_undoes_and_repeats_nothing(tmp_path: Path, http: Backend, fault: Kind, at: int) -> None:
    names, bad = named(50), ["r0000", "r0020", "r0021", "r0049"]
    refuse = refusing(bad)
    http.rule = lambda sent: fault if len(http.calls) in (at, at + 1) else refuse(sent)
    with rig(tmp_path, http.exporter()) as made:
        made.put(*names)
        made.start()
        made.drained()
        # What passed behind a record that is not decided yet is sent again: at least once, and in order.
        assert list(dict.fromkeys(http.taken)) == [name for name in names if name not in bad]
        assert made.dead_letter_names() == bad


@limited(max_examples=limited().max_examples // 4)  # each takes a quarter of a second
@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 1000), st.data())
def test_every_record_is_delivered_or_a_dead_letter(count: int, most: int, seed: int, data: st.DataObject) -> None:
    """Any records bad, any faults on the way: none is lost, none but a bad one is given up, and that once."""
    names, luck = named(count), random.Random(seed)
    bad = data.draw(st.sets(st.sampled_from(names), max_size=count // 2))
    with TemporaryDirectory() as folder, Backend() as backend:
        refuse = refusing(bad)

        def rule(sent: list[str]) -> Kind:
            return luck.choice(["later", "blocked", "broken"]) if luck.random() < 0.15 else refuse(sent)

        backend.rule = rule
        with rig(Path(folder), backend.exporter(), settings(max_records=most, between_probes=0.001)) as made:
            made.put(*names)
            made.start()
            helps = 0

            def is_done() -> bool:
                # Bad ones at the end wait for the next change.
                nonlocal helps
                if luck.random() < 0.1:
                    made.sender.resume()  # at any moment
                if made.sender.state in ("refused", "blocked") and made.sender.attempts > 3:
                    helps += 1
                    made.put(f"help{helps}")
                return made.waiting() == 0

            wait_until(is_done, "the end")
            dead_letters = made.dead_letter_names()
            taken = [name for name in dict.fromkeys(backend.taken) if name in names]
            assert dead_letters == [name for name in names if name in dead_letters], "in order, and each once"
            assert sorted({*taken, *dead_letters}) == names
            assert set(dead_letters) == bad
