"""Delivery with the real queue, real senders and real backends: what becomes of each record, in every trouble."""

import logging
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import settings as limited
from hypothesis import strategies as st
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint

from statsig_otel.exporters.delivery.retry import RetrySettings
from statsig_otel.exporters.delivery.sender import BLOCKED, DeliverySettings, QueueSender
from statsig_otel.exporters.exporter import Delivered, Outcome
from statsig_otel.exporters.queue import queries
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.routing import CurrentRouting, Routing
from tests.exporters.delivery.helpers import (
    QUICK,
    SLOW,
    Backend,
    Kind,
    Rig,
    encoded,
    exporter_to,
    named,
    names_in,
    refusing,
    rig,
    settings,
)
from tests.exporters.queue.helpers import failing_disk
from tests.peers.otlp_servers import free_port
from tests.waiting import wait_until

LOGGER = "statsig_otel.exporters.delivery.sender"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """grpcio honours the environment's proxies, for loopback too."""
    monkeypatch.setenv("no_grpc_proxy", "localhost,127.0.0.1")


@pytest.fixture(params=["http", "grpc"])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """A backend over each of the protocols."""
    with Backend(request.param) as running:
        yield running


@pytest.fixture
def http() -> Iterator[Backend]:
    """A backend, where the protocol makes no difference."""
    with Backend() as running:
        yield running


Counts = Callable[[], dict[str, float]]


@pytest.fixture(scope="session")
def counts() -> Counts:
    """The counts of log records by the exporter `out`. A process has one MeterProvider, for good."""
    reader = InMemoryMetricReader()
    set_meter_provider(MeterProvider([reader]))

    def read() -> dict[str, float]:
        found = {"sent": 0.0, "send_failed": 0.0}
        data = reader.get_metrics_data()
        for of_resource in data.resource_metrics if data else ():
            for metric in (metric for scope in of_resource.scope_metrics for metric in scope.metrics):
                name = metric.name.removeprefix("otelcol_exporter_").removesuffix("_log_records")
                for point in metric.data.data_points:
                    if name in found and isinstance(point, NumberDataPoint) and point.attributes == {"exporter": "out"}:
                        found[name] += point.value
        return found

    return read


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == LOGGER]


# --- each outcome ---------------------------------------------------------------------------------------------------


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
        assert made.letters() == []
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
        assert made.letters() == []


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


def test_a_backend_that_asks_for_time_gets_it(tmp_path: Path, backend: Backend) -> None:
    backend.rule = lambda names: "delivered" if backend.calls else "later in 1 s"
    with rig(tmp_path, backend.exporter()) as made:
        made.put("a")
        made.start()
        made.drained()
        first, second = backend.times
        assert second - first >= 0.99


def test_a_lone_record_that_is_refused_is_a_dead_letter(tmp_path: Path, backend: Backend) -> None:
    backend.rule = refusing(["bad"])
    with rig(tmp_path, backend.exporter()) as made:
        made.put("bad")
        made.start()
        made.drained()
        (letter,) = made.letters()
        assert (letter.kind, letter.owner, letter.content, letter.attempts, letter.count) == (
            "record", "out", encoded("bad"), 1, 1,
        )  # fmt: skip
        assert "no good" in letter.reason
        made.put("good")
        made.drained()
        assert backend.taken == ["good"]


@pytest.mark.parametrize("bad", [["r0250"], ["r0000"], ["r0499"], ["r0000", "r0001", "r0100", "r0498", "r0499"]])
def test_refused_records_of_a_batch_are_found_and_all_others_delivered_in_order(
    tmp_path: Path, backend: Backend, bad: list[str]
) -> None:
    names = named(500)
    backend.rule = refusing(bad)
    with rig(tmp_path, backend.exporter()) as made:
        made.put(*names)
        made.start()
        made.drained()
        assert backend.taken == [name for name in names if name not in bad]
        assert made.buried() == bad
        assert {letter.kind for letter in made.letters()} == {"record"}
        assert all(9 <= letter.attempts <= 11 for letter in made.letters())
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
        assert "every record is refused" in made.sender.last_error
        assert (made.waiting(), made.letters()) == (count, [])
        http.rule = lambda sent: "delivered"
        made.drained()
        assert http.taken == names
        assert made.letters() == []


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
        assert (made.sender.state, made.waiting(), made.letters()) == ("blocked", 2, [])
        made.put("good")
        made.drained()
        assert made.buried() == ["bad1", "bad2"]
        assert http.taken == ["good"]


def test_small_batches_turn_no_backlog_into_dead_letters(tmp_path: Path, http: Backend) -> None:
    """A record that goes alone for want of room is judged by the one behind it."""
    names = named(6)
    http.rule = lambda sent: "rejected"
    with rig(tmp_path, http.exporter(), settings(max_records=1)) as made:
        made.put(*names)
        made.start()
        wait_until(lambda: made.sender.attempts >= 3)
        assert (made.waiting(), made.letters()) == (6, [])
        http.rule = refusing(names[:1])
        made.drained()
        assert made.buried() == names[:1]
        assert http.taken == names[1:]
        assert all(len(batch) == 1 for batch, _ in http.calls)


def test_a_mended_key_before_a_refusing_backend_loses_no_backlog(tmp_path: Path, http: Backend) -> None:
    """While it is blocked the head goes alone; that it is refused then says nothing about the data yet."""
    names = named(20)
    http.rule = lambda sent: "blocked"
    with rig(tmp_path, http.exporter()) as made:
        made.put(*names)
        made.start()
        wait_until(lambda: made.sender.attempts >= 2)
        http.rule = lambda sent: "rejected"
        wait_until(lambda: http.count("rejected") > 45)
        assert (made.waiting(), made.letters()) == (20, [])
        http.rule = lambda sent: "delivered"
        made.drained()
        assert sorted(http.taken) == names


@pytest.mark.parametrize("mended_at", [1, 4, 5, 9, 15])
def test_a_backend_that_is_mended_in_the_middle_of_a_halving_turns_nothing_into_dead_letters(
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
        assert made.letters() == []


def test_a_partial_success_behind_a_refused_record_is_neither_sent_again_nor_doubled(
    tmp_path: Path, http: Backend
) -> None:
    http.rule = lambda names: "rejected" if {"r0000", "r0001"} & {*names} else "partial"
    with rig(tmp_path, http.exporter()) as made:
        made.put(*named(4))
        made.start()
        made.drained()
        assert http.taken == named(4)[2:]
        assert [(letter.kind, names_in(letter.content)) for letter in made.letters()] == [
            ("record", ["r0000"]), ("record", ["r0001"]), ("batch", ["r0002", "r0003"]),
        ]  # fmt: skip


def test_a_partial_success_is_never_sent_again_and_kept(tmp_path: Path, backend: Backend) -> None:
    backend.rule = lambda names: "partial" if "r0001" in names else "delivered"
    with rig(tmp_path, backend.exporter(), settings(max_records=3)) as made:
        made.put(*named(5))
        made.start()
        made.drained()
        assert [names for names, _ in backend.calls] == [named(3), named(5)[3:]]
        (letter,) = made.letters()
        assert (letter.kind, letter.count, letter.uid, letter.attempts) == ("batch", 3, None, 1)
        assert letter.reason == "1 of 3 were refused: one of them"
        assert names_in(letter.content) == named(3)


def test_while_blocked_nothing_leaves_the_queue_and_all_is_delivered_once_the_key_is_right(
    tmp_path: Path, backend: Backend
) -> None:
    names = named(1000)
    backend.rule = lambda sent: "blocked"
    with rig(tmp_path, backend.exporter()) as made:
        made.put(*names)
        made.start()
        wait_until(lambda: made.sender.attempts >= 5)
        assert (made.sender.state, made.waiting(), made.letters()) == ("blocked", 1000, [])
        assert "who are you" in made.sender.last_error
        assert [len(batch) for batch, _ in backend.calls[:4]] == [512, 1, 1, 1], "the head alone tells"
        backend.rule = lambda sent: "delivered"
        made.drained()
        assert backend.taken == names
        assert made.letters() == []


def test_resume_tries_at_once(tmp_path: Path, http: Backend) -> None:
    http.rule = lambda names: "blocked"
    with rig(tmp_path, http.exporter(), settings(blocked=SLOW)) as made:
        made.put(*named(5))
        made.start()
        wait_until(lambda: made.sender.state == "blocked")
        calls = len(http.calls)
        made.sender.resume()
        wait_until(lambda: len(http.calls) == calls + 1)
        wait_until(lambda: made.sender.attempts == 2)
        http.rule = lambda names: "delivered"
        made.sender.resume()
        made.drained()
        assert http.taken == named(5)


def test_resume_ends_a_wait_after_a_passing_fault_too(tmp_path: Path, http: Backend) -> None:
    http.rule = lambda names: "later"
    with rig(tmp_path, http.exporter(), settings(retry=SLOW)) as made:
        made.put("a")
        made.start()
        wait_until(lambda: made.sender.state == "retrying")
        http.rule = lambda names: "delivered"
        made.sender.resume()
        made.drained()


def test_resume_during_an_attempt_counts_for_the_next_one(tmp_path: Path, http: Backend) -> None:
    """The key may have been mended while the attempt with the old one was under way."""
    http.rule = lambda names: "delivered" if http.calls else "hang"
    with rig(tmp_path, http.exporter(), settings(retry=SLOW)) as made:
        made.put("a")
        made.start()
        http.sink.wait_for(1)
        made.sender.resume()
        http.sink.release()
        made.drained()


def test_resume_with_nothing_to_do_saves_no_later_wait(tmp_path: Path, http: Backend) -> None:
    with rig(tmp_path, http.exporter(), settings(retry=SLOW)) as made:
        made.start()
        wait_until(lambda: made.sender.state == "idle")
        for _ in range(3):
            made.sender.resume()
        made.put("a")
        made.drained()
        wait_until(lambda: made.sender.state == "idle")
        http.rule = lambda names: "later"
        made.put("b")
        wait_until(lambda: made.sender.state == "retrying")
        time.sleep(0.2)
        assert http.count("later") == 1


def test_skip_makes_the_head_alone_a_dead_letter_and_goes_on(tmp_path: Path, http: Backend) -> None:
    http.rule = refusing(["r0000"], "broken")
    with rig(tmp_path, http.exporter(), settings(blocked=SLOW)) as made:
        made.put(*named(5))
        made.start()
        wait_until(lambda: made.sender.state == "blocked")
        assert made.sender.skip()
        made.drained()
        (letter,) = made.letters()
        assert (letter.kind, letter.reason, letter.attempts) == ("record", "skipped by command", 1)
        assert names_in(letter.content) == ["r0000"]
        assert http.taken == named(5)[1:]


def test_a_record_that_breaks_the_backend_comes_to_the_head_by_itself(tmp_path: Path, http: Backend) -> None:
    """500 for one record in the middle: those before it are delivered, and skip hits the right one."""
    names = named(100)
    http.rule = refusing(["r0057"], "broken")
    with rig(tmp_path, http.exporter(), settings(blocked=SLOW)) as made:
        made.put(*names)
        made.start()
        wait_until(lambda: made.sender.state == "blocked")
        assert http.taken == names[:57]
        assert (made.waiting(), made.letters()) == (43, [])
        made.sender.skip()
        made.drained()
        assert made.buried() == ["r0057"]
        assert http.taken == names[:57] + names[58:]


def test_skip_while_all_is_blocked_takes_one_record_each(tmp_path: Path, http: Backend) -> None:
    http.rule = lambda names: "blocked"
    with rig(tmp_path, http.exporter(), settings(blocked=SLOW)) as made:
        made.put(*named(5))
        made.start()
        for gone in (1, 2):
            wait_until(lambda: made.sender.state == "blocked" and made.sender.attempts == 1)
            made.sender.skip()
            wait_until(lambda gone=gone: made.waiting() == 5 - gone)  # type: ignore[misc] # mypy can't see the default
        assert made.buried() == named(2)
        http.rule = lambda names: "delivered"
        made.sender.resume()
        made.drained()
        assert http.taken == named(5)[2:]


def test_skip_of_an_empty_queue_takes_no_later_record(tmp_path: Path, http: Backend) -> None:
    with rig(tmp_path, http.exporter()) as made:
        made.start()
        wait_until(lambda: made.sender.state == "idle")
        assert not made.sender.skip()
        made.put("a")
        made.drained()
        assert made.letters() == []
        assert http.taken == ["a"]


def test_skip_is_void_where_the_head_is_delivered_meanwhile(tmp_path: Path, http: Backend) -> None:
    gate = threading.Event()

    def rule(names: list[str]) -> Kind:
        assert gate.wait(30)
        return "delivered"

    http.rule = rule
    with rig(tmp_path, http.exporter(), settings(max_records=1)) as made:
        made.put("a", "b")
        made.start()
        http.sink.wait_for(1)
        assert made.sender.skip()
        gate.set()
        made.drained()
        assert http.taken == ["a", "b"]
        assert made.letters() == []


def test_after_a_skip_the_last_of_those_refused_is_not_given_up_by_itself(tmp_path: Path, http: Backend) -> None:
    http.rule = lambda names: "rejected"
    with rig(tmp_path, http.exporter()) as made:
        made.put("a", "b")
        made.start()
        wait_until(lambda: made.sender.state == "blocked")
        made.sender.skip()
        wait_until(lambda: made.waiting() == 1)
        wait_until(lambda: made.sender.attempts >= 2)
        assert made.buried() == ["a"]
        http.rule = lambda names: "delivered"
        made.drained()
        assert http.taken == ["b"]


# --- order and conservation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["later", "blocked", "broken"])
@pytest.mark.parametrize("at", [3, 12])
def test_a_fault_in_the_middle_of_a_halving_undoes_and_doubles_nothing(
    tmp_path: Path, http: Backend, fault: Kind, at: int
) -> None:
    names, bad = named(50), ["r0000", "r0020", "r0021", "r0049"]
    refuse = refusing(bad)
    http.rule = lambda sent: fault if len(http.calls) in (at, at + 1) else refuse(sent)
    with rig(tmp_path, http.exporter()) as made:
        made.put(*names)
        made.start()
        made.drained()
        # What passed behind a record that is not decided yet is sent again: at least once, and in order.
        assert list(dict.fromkeys(http.taken)) == [name for name in names if name not in bad]
        assert made.buried() == bad


@limited(max_examples=15)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 1000), st.data())
def test_every_record_is_delivered_or_a_dead_letter_in_order(
    count: int, most: int, seed: int, data: st.DataObject
) -> None:
    """Any records bad, any faults on the way: none is lost, and no dead letter is doubled."""
    names, luck = named(count), random.Random(seed)
    bad = data.draw(st.sets(st.sampled_from(names), max_size=count // 2))
    with TemporaryDirectory() as folder, Backend() as backend:
        refuse = refusing(bad)

        def rule(sent: list[str]) -> Kind:
            return luck.choice(["later", "blocked", "broken"]) if luck.random() < 0.15 else refuse(sent)

        backend.rule = rule
        with rig(Path(folder), backend.exporter(), settings(max_records=most)) as made:
            made.put(*names)
            made.start()
            helps = 0

            def is_done() -> bool:
                # Two or more bad ones that fill a batch wait for a person, who skips them.
                nonlocal helps
                made.sender.resume()  # at any moment
                if "every record" in made.sender.last_error and made.sender.attempts > 3:
                    helps += made.sender.skip()
                return made.waiting() == 0

            wait_until(is_done, "the end")
            buried = made.buried()
            taken = list(dict.fromkeys(backend.taken))
            assert taken == [name for name in names if name in taken], "in order"
            assert buried == [name for name in names if name in buried], "in order, and each once"
            assert sorted({*taken, *buried}) == names
            assert bad <= set(buried)
            assert len(buried) <= len(bad) + helps


# --- sizes ----------------------------------------------------------------------------------------------------------


def test_a_batch_over_the_backend_s_limit_is_halved_until_it_passes(tmp_path: Path, backend: Backend) -> None:
    """2 MiB in whole; one record is larger by itself."""
    sizes = {**dict.fromkeys(named(16), 200 << 10), "giant": 2200 << 10, **dict.fromkeys(named(4, "s"), 1000)}
    backend.rule = lambda sent: "too large" if sum(sizes[name] for name in sent) > 2 << 20 else "delivered"
    with rig(tmp_path, backend.exporter(), settings(max_bytes=8 << 20)) as made:
        for name, size in sizes.items():
            made.put(name, size=size)
        made.start()
        made.drained()
        assert backend.taken == [name for name in sizes if name != "giant"]
        assert made.buried() == ["giant"]


def test_two_records_larger_than_any_batch_are_dead_letters_and_the_rest_goes_on(tmp_path: Path, http: Backend) -> None:
    http.rule = lambda sent: "too large" if sent[0].startswith("giant") else "delivered"
    with rig(tmp_path, http.exporter(), settings(max_bytes=10_000)) as made:
        made.put("giant1", "giant2", size=11_000)
        made.put("a", "b")
        made.start()
        made.drained()
        assert made.buried() == ["giant1", "giant2"]
        assert http.calls[-1][0] == ["a", "b"]


def test_a_batch_keeps_to_its_limits_and_a_larger_record_goes_alone(tmp_path: Path, http: Backend) -> None:
    with rig(tmp_path, http.exporter(), settings(max_bytes=10_000, max_records=7)) as made:
        made.put(*named(10))
        made.put(*named(10, "s"), size=3000)
        made.put("giant", size=20_000)
        made.put(*named(3, "t"))
        made.start()
        made.drained()
        batches = [names for names, _ in http.calls]
        assert [name for names in batches for name in names] == [*named(10), *named(10, "s"), "giant", *named(3, "t")]
        assert ["giant"] in batches
        assert all(len(names) <= 7 for names in batches)
        assert all(len(request.payload) <= 10_000 for request in http.sink.requests if len(request.records) > 1)
        assert all(len(names) >= 3 for names in batches[:-3]), "and is as large as it can be"


# --- backends in trouble --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["later", "blocked", "hang", None])
def test_a_dead_backend_holds_up_no_other(tmp_path: Path, trouble: Kind | None) -> None:
    with Backend("grpc") as good, Backend() as bad:
        bad.rule = lambda names: trouble or "delivered"
        dead = bad.exporter() if trouble else exporter_to("http", f"127.0.0.1:{free_port()}")
        made = Rig(tmp_path, {"good": (good.exporter(), settings()), "bad": (dead, settings(retry=SLOW))})
        made.start()
        try:
            for name in named(20):
                made.put(name)
            made.drained("good")
            assert good.taken == named(20)
            assert made.waiting("bad") == 20
        finally:
            made.close()


def test_a_backend_that_flaps_gets_everything_in_order(tmp_path: Path, http: Backend) -> None:
    names = named(60)
    http.rule = lambda sent: "later" if len(http.calls) % 2 else "delivered"
    with rig(tmp_path, http.exporter(), settings(max_records=10)) as made:
        made.put(*names)
        made.start()
        made.drained()
        assert http.taken == names


def test_a_backend_that_hangs_is_given_up_and_tried_again(tmp_path: Path, backend: Backend) -> None:
    backend.rule = lambda names: "delivered" if len(backend.calls) >= 2 else "hang"
    with rig(tmp_path, backend.exporter(), settings(timeout=0.3)) as made:
        made.put("a")
        made.start()
        made.drained()
        assert backend.taken == ["a"]


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_a_backend_that_comes_back_on_its_port_is_found(tmp_path: Path, transport: str) -> None:
    port = free_port()
    exporter = exporter_to(transport, f"127.0.0.1:{port}")
    with rig(tmp_path, exporter) as made:
        made.put(*named(3))
        made.start()
        wait_until(lambda: made.sender.attempts >= 3)
        assert made.sender.state == "retrying"
        with Backend(transport, port=port) as first:
            made.drained()
            assert first.taken == named(3)
        made.put("again")
        wait_until(lambda: made.sender.state == "retrying")
        with Backend(transport, port=port) as second:
            made.drained()
            assert second.taken == ["again"]


def test_an_outage_costs_no_busy_loop(tmp_path: Path, http: Backend) -> None:
    """At intervals of a fifth of a second, a second holds a handful of attempts."""
    http.rule = lambda names: "later"
    steady = RetrySettings(initial_interval=0.2, max_interval=0.2, randomization_factor=0)
    with rig(tmp_path, http.exporter(), settings(retry=steady)) as made:
        made.put("a")
        made.start()
        http.sink.wait_for(1)
        for name in named(50):
            made.put(name)  # what comes in ends no wait
        time.sleep(0.8)
        assert (http.times[-1] - http.times[0]) / 0.2 >= len(http.calls) - 1.05
        assert all(later - earlier >= 0.19 for earlier, later in zip(http.times, http.times[1:], strict=False))


def test_a_mistake_in_an_exporter_ends_no_sender(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`send` never raises; should it once do so, delivery goes on after a pause."""

    class Mistaken:
        sent: list[bytes]

        def start(self) -> None:
            self.sent = []

        def send(self, payload: bytes, count: int, timeout: float) -> Outcome:
            self.sent.append(payload)
            if len(self.sent) < 3:
                raise AssertionError("a mistake")
            return Delivered()

        def shutdown(self) -> None:
            """Nothing is open."""

    exporter = Mistaken()
    with rig(tmp_path, exporter) as made:
        made.put("a")
        made.start()
        made.drained()
        assert exporter.sent == [encoded("a")] * 3
    assert "unexpected AssertionError" in "\n".join(lines(caplog))


# --- configured to give up ------------------------------------------------------------------------------------------


def test_without_retries_a_passing_fault_makes_dead_letters_and_drops_nothing(tmp_path: Path, http: Backend) -> None:
    http.rule = lambda names: "delivered" if "r0004" in names else "later"
    with rig(tmp_path, http.exporter(), settings(retry=RetrySettings(enabled=False), max_records=2)) as made:
        made.put(*named(6))
        made.start()
        made.drained()
        assert made.buried() == named(4)
        assert all(
            (letter.kind, letter.attempts, letter.reason.partition(":")[0])
            == ("record", 1, "not sent again, as configured")
            for letter in made.letters()
        )
        assert http.taken == ["r0004", "r0005"]


def test_without_retries_a_wrong_key_still_gives_nothing_up(tmp_path: Path, http: Backend) -> None:
    http.rule = lambda names: "blocked"
    with rig(tmp_path, http.exporter(), settings(retry=RetrySettings(enabled=False))) as made:
        made.put(*named(6))
        made.start()
        wait_until(lambda: made.sender.attempts >= 3)
        assert (made.waiting(), made.letters()) == (6, [])


def test_max_elapsed_time_counts_anew_for_each_batch(tmp_path: Path, http: Backend) -> None:
    """A backlog is not given up in one go because its head was tried for long."""
    http.rule = lambda names: "later"
    bounded = RetrySettings(initial_interval=0.05, max_interval=0.05, max_elapsed_time=0.3)
    with rig(tmp_path, http.exporter(), settings(retry=bounded, max_records=2)) as made:
        made.put(*named(4))
        made.start()
        made.drained()
        assert made.buried() == named(4)
        tries = Counter(names[0] for names, _ in http.calls)
        assert tries["r0000"] >= 3
        assert tries["r0002"] >= 3
        assert [letter.attempts for letter in made.letters()] == [tries["r0000"]] * 2 + [tries["r0002"]] * 2


def test_an_attempt_that_shutdown_cuts_off_gives_nothing_up(tmp_path: Path, backend: Backend) -> None:
    """With retries off, too: it was us who ended it."""
    backend.rule = lambda names: "hang"
    with rig(tmp_path, backend.exporter(), settings(retry=RetrySettings(enabled=False))) as made:
        made.put(*named(3))
        made.start()
        backend.sink.wait_for(1)
        made.sender.shutdown()
        assert (made.waiting(), made.letters()) == (3, [])


# --- storage in trouble ---------------------------------------------------------------------------------------------


def database(made: Rig, statement: str, *values: object) -> None:
    connection = sqlite3.connect(made.queue.database, timeout=30)
    with connection:
        assert connection.execute(statement, values).rowcount == 1
    connection.close()


@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_damaged_record_is_a_dead_letter_and_its_neighbours_are_delivered(
    tmp_path: Path, http: Backend, place: int
) -> None:
    names = named(5)
    with rig(tmp_path, http.exporter()) as made:
        made.put(*names)
        damaged = bytearray(encoded(names[place]))
        damaged[-1] ^= 1
        database(made, "UPDATE records SET payload = ? WHERE seq = ?", bytes(damaged), place + 1)
        made.start()
        made.drained()
        (letter,) = made.letters()
        assert (letter.kind, letter.content, letter.attempts) == ("damaged", bytes(damaged), 0)
        assert "checksum" in letter.reason
        assert http.taken == [name for name in names if name != names[place]]


def test_damaged_records_leave_a_blocked_queue_as_well(tmp_path: Path, http: Backend) -> None:
    http.rule = lambda names: "blocked"
    with rig(tmp_path, http.exporter()) as made:
        made.put(*named(3))
        database(made, "UPDATE records SET checksum = checksum - 1 WHERE seq = ?", 1)
        made.start()
        wait_until(lambda: made.sender.attempts >= 2)
        assert made.buried() == ["r0000"]
        http.rule = lambda names: "delivered"
        made.drained()
        assert http.taken == named(3)[1:]


def test_while_nothing_can_be_ticked_off_nothing_is_sent_again_and_nothing_is_lost(
    tmp_path: Path, http: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    with rig(tmp_path, http.exporter(), settings(max_records=2)) as made:
        made.put(*named(4))
        with failing_disk():
            made.start()
            http.sink.wait_for(1)
            wait_until(lambda: made.sender.state == "retrying")
            time.sleep(0.4)
            assert made.queue.submit(queries.exporter_states).exception(10) is not None
            assert "the queue's file" in made.sender.last_error
            assert len(http.calls) == 2, "one batch ahead of the disk, and no further"
        made.drained()
        wait_until(lambda: made.sender.state == "idle")
        assert http.taken == named(4)
        assert made.letters() == []
    said = lines(caplog)
    assert sum("ticked off; delivery waits" in line for line in said) == 1
    assert sum("ticked off again" in line for line in said) == 1


def test_a_dead_letter_that_can_not_be_written_is_written_once_later(tmp_path: Path, http: Backend) -> None:
    http.rule = refusing(["r0001"])
    with rig(tmp_path, http.exporter()) as made:
        made.put(*named(3))
        with failing_disk():
            made.start()
            wait_until(lambda: made.sender.state == "retrying")
            time.sleep(0.3)
        made.drained()
        assert made.buried() == ["r0001"]
        assert http.taken == ["r0000", "r0002"]


def test_shutdown_while_storage_fails_is_quick_and_sends_nothing_in_a_hurry(tmp_path: Path, http: Backend) -> None:
    with rig(tmp_path, http.exporter()) as made:
        made.put(*named(3))
        with failing_disk():
            made.start()
            wait_until(lambda: made.sender.state == "retrying")
            began = time.monotonic()
            made.sender.shutdown(drain=20)
            assert time.monotonic() - began < 10
            assert len(http.calls) == 1
    with Backend() as fresh, rig(tmp_path, fresh.exporter()) as again:
        assert again.waiting() == 3
        again.start()
        again.drained()
        assert fresh.taken == named(3)


def test_a_file_that_can_not_be_read_is_tried_again_and_said_once(
    tmp_path: Path, http: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    with rig(tmp_path, http.exporter()) as made:
        made.put(*named(3))
        moved = made.queue.database.with_suffix(".away")
        made.queue.database.rename(moved)
        made.start()
        wait_until(lambda: "the queue's file" in made.sender.last_error)
        time.sleep(0.3)
        moved.rename(made.queue.database)
        made.drained()
        assert http.taken == named(3)
    assert sum("can't be read" in line for line in lines(caplog)) == 1


# --- the end --------------------------------------------------------------------------------------------------------


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "out" in thread.name]


def test_shutdown_sends_what_waits_while_the_backend_answers(tmp_path: Path, http: Backend) -> None:
    names = named(300)
    with rig(tmp_path, http.exporter(), settings(max_records=10)) as made:
        made.put(*names)
        made.start()
        made.sender.shutdown(drain=30)
        assert http.taken == names
        assert made.waiting() == 0
        assert made.sender.state == "stopped"
        made.sender.shutdown(drain=30)
        wait_until(lambda: threads() == [])


def test_shutdown_drains_up_to_its_time_and_the_rest_is_delivered_after_the_next_start(
    tmp_path: Path, http: Backend
) -> None:
    """What is sent twice is the one batch that shutdown cut off."""
    names = named(40)

    def slow(sent: list[str]) -> Kind:
        time.sleep(0.03)
        return "delivered"

    http.rule = slow
    with rig(tmp_path, http.exporter(), settings(max_records=2)) as made:
        made.put(*names)
        made.start()
        made.sender.shutdown(drain=0.3)
        left = made.waiting()
        assert 0 < left < 40
        wait_until(lambda: threads() == [])
    with rig(tmp_path, http.exporter(), settings(max_records=2)) as again:
        again.start()
        again.drained()
    seen = Counter(http.taken)
    assert sorted(seen) == names
    assert sum(count - 1 for count in seen.values()) <= 2
    assert again.letters() == []


@pytest.mark.parametrize("kind", ["later", "blocked", "hang"])
def test_shutdown_waits_for_no_dead_backend(tmp_path: Path, http: Backend, kind: Kind) -> None:
    http.rule = lambda names: "later" if kind == "hang" and not http.calls else kind
    with rig(tmp_path, http.exporter(), settings(retry=QUICK, blocked=SLOW)) as made:
        made.put(*named(3))
        made.start()
        if kind == "hang":
            http.sink.wait_for(2)
        else:
            wait_until(lambda: made.sender.attempts)
        began = time.monotonic()
        made.sender.shutdown(drain=60)
        assert time.monotonic() - began < 20
        assert (made.waiting(), made.letters()) == (3, [])
        wait_until(lambda: threads() == [])


def test_shutdown_interrupts_a_send_that_hangs(tmp_path: Path, backend: Backend) -> None:
    backend.rule = lambda names: "hang"
    with rig(tmp_path, backend.exporter()) as made:
        made.put(*named(3))
        made.start()
        backend.sink.wait_for(1)
        began = time.monotonic()
        made.sender.shutdown(drain=0.2)
        assert time.monotonic() - began < 15
        wait_until(lambda: threads() == [])
        assert (made.waiting(), made.letters(), made.sender.state) == (3, [], "stopped")


def test_a_sender_can_be_shut_down_before_and_without_work(tmp_path: Path, http: Backend) -> None:
    with rig(tmp_path, http.exporter()) as made:
        made.sender.shutdown(drain=60)
        made.sender.shutdown()
    with rig(tmp_path / "other", http.exporter()) as idle:
        idle.start()
        wait_until(lambda: idle.sender.state == "idle")
        idle.sender.shutdown(drain=60)
        wait_until(lambda: threads() == [])


def test_a_queue_that_stops_first_ends_its_sender(tmp_path: Path, http: Backend) -> None:
    gate = threading.Event()

    def rule(names: list[str]) -> Kind:
        assert gate.wait(30)
        return "delivered"

    http.rule = rule
    with rig(tmp_path, http.exporter()) as made:
        made.put("a")
        made.start()
        http.sink.wait_for(1)
        made.queue.shutdown()
        gate.set()
        wait_until(lambda: made.sender.state == "stopped")


# --- what is said ---------------------------------------------------------------------------------------------------


def test_a_long_outage_is_one_line_at_its_beginning_and_one_at_its_end(
    tmp_path: Path, http: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    http.rule = lambda names: "later"
    secret = "hush-hush-hush"
    with rig(tmp_path, http.exporter(headers={"api-key": secret})) as made:
        made.put(*named(7))
        made.start()
        wait_until(lambda: made.sender.attempts >= 8)
        assert len(lines(caplog)) == 1
        http.rule = lambda names: "delivered"
        made.drained()
        begin, end = lines(caplog)
        assert begin.startswith("out can't deliver now: ")
        assert begin.endswith("7 records wait")
        assert end.startswith("out answers again after ")
        assert end.endswith("7 records to catch up")
        made.put("more")
        made.drained()
        assert len(lines(caplog)) == 2
    assert secret not in caplog.text


def test_each_kind_of_an_outage_is_said_once(tmp_path: Path, http: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """Also where a backend changes between them with each attempt."""
    http.rule = lambda names: "later" if len(http.calls) % 2 else "blocked"
    with rig(tmp_path, http.exporter()) as made:
        made.put("a")
        made.start()
        wait_until(lambda: len(http.calls) >= 8)
        http.rule = lambda names: "delivered"
        made.drained()
    assert [line.split(" ", 1)[1][:10] for line in lines(caplog)] == ["is blocked", "can't deli", "answers ag"]
    blocked = next(record for record in caplog.records if "is blocked" in record.getMessage())
    assert blocked.levelno == logging.ERROR


def test_the_next_outage_is_said_again(tmp_path: Path, http: Backend, caplog: pytest.LogCaptureFixture) -> None:
    with rig(tmp_path, http.exporter()) as made:
        made.start()
        for round_, name in enumerate(named(2), 1):
            http.rule = lambda names: "later"
            made.put(name)
            wait_until(lambda: made.sender.state == "retrying")
            http.rule = lambda names: "delivered"
            made.drained()
            wait_until(lambda round_=round_: len(lines(caplog)) == 2 * round_)  # type: ignore[misc] # as above


def test_an_outage_ends_with_a_refusal_of_the_data_as_well(
    tmp_path: Path, http: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    http.rule = lambda names: "later" if len(http.calls) < 2 else "rejected"
    with rig(tmp_path, http.exporter()) as made:
        made.put("bad")
        made.start()
        made.drained()
        wait_until(lambda: made.sender.state == "idle")
        assert (made.sender.attempts, made.sender.last_error) == (0, "")
        assert made.letters()[0].attempts == 3
    assert sum("answers again" in line for line in lines(caplog)) == 1


def test_half_of_a_batch_refused_is_one_line(tmp_path: Path, http: Backend, caplog: pytest.LogCaptureFixture) -> None:
    names = named(100)
    http.rule = refusing(names[::2])
    with rig(tmp_path, http.exporter()) as made:
        made.put(*names)
        made.start()
        made.drained()
        assert made.buried() == names[::2]
        assert http.taken == names[1::2]
        wait_until(lambda: lines(caplog))
    (line,) = lines(caplog)
    assert line.startswith("out: 50 records went to the dead letters; the first: HTTP 400")


def test_shutdown_in_an_attempt_says_nothing_of_an_outage(
    tmp_path: Path, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.rule = lambda names: "hang"
    with rig(tmp_path, backend.exporter()) as made:
        made.put("a")
        made.start()
        backend.sink.wait_for(1)
        made.sender.shutdown()
    assert lines(caplog) == []


def test_states_are_those_that_the_queue_command_shows(tmp_path: Path, http: Backend) -> None:
    gate = threading.Event()

    def rule(names: list[str]) -> Kind:
        assert gate.wait(30)
        return "delivered"

    http.rule = rule
    states: list[str] = []
    with rig(tmp_path, http.exporter()) as made:
        states.append(made.sender.state)
        made.start()
        wait_until(lambda: made.sender.state == "idle")
        made.put("a")
        http.sink.wait_for(1)
        states.append(made.sender.state)
        gate.set()
        wait_until(lambda: made.sender.state == "idle")
        made.sender.shutdown()
        states.append(made.sender.state)
    assert states == ["stopped", "sending", "stopped"]


def test_records_sent_and_failed_are_counted(tmp_path: Path, http: Backend, counts: Counts) -> None:
    answers: Iterator[Kind] = iter(["later", "partial", "delivered"])
    http.rule = lambda names: next(answers)
    before = counts()
    with rig(tmp_path, http.exporter(), settings(max_records=3)) as made:
        made.put(*named(5))
        made.start()
        made.drained()
        wait_until(lambda: made.sender.state == "idle")
    after = counts()
    assert after["sent"] - before["sent"] == 2 + 2
    assert after["send_failed"] - before["send_failed"] == 3 + 1


def test_by_default_a_blocked_exporter_is_tried_every_five_minutes_at_least() -> None:
    assert BLOCKED.max_interval * (1 + BLOCKED.randomization_factor) == 300
    assert BLOCKED.max_elapsed_time == 0
    assert BLOCKED.enabled
    assert DeliverySettings().blocked is BLOCKED


def test_a_sender_opens_nothing_before_its_start(tmp_path: Path) -> None:
    queue = DurableQueue(tmp_path / "queue", CurrentRouting(Routing()))
    assert queue is not None
    made = Rig(tmp_path, {"out": (exporter_to("http", "127.0.0.1:9"), settings())})
    try:
        assert threads() == []
        assert isinstance(made.sender, QueueSender)
    finally:
        made.close()
