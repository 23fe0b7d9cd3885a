"""A refusal is the data's fault only if another record is taken: poison, wrong paths, old backlogs, and outages."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from statsig_otel.exporters.delivery.sender import QueueSender
from statsig_otel.exporters.exporter import Blocked, Delivered, Outcome, Rejected, RetryLater
from tests.exporters.delivery.helpers import (
    SLOW,
    Backend,
    Kind,
    Rig,
    encoded,
    lines,
    named,
    names_in,
    refusing,
    rig,
    settings,
)
from tests.looped import slow_except
from tests.waiting import wait_until


@pytest.mark.parametrize("kind", ["rejected", "too large"])
def test_one_poison_record_waits_for_the_next_change_which_is_sent_at_once(
    tmp_path: Path, backend: Backend, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """No attempt of its own is due for a long time. 413 is no other case."""
    backend.rule = refusing(["poison"], kind)
    with rig(tmp_path, backend.exporter(), settings(blocked=SLOW)) as made:
        made.put("poison")
        made.start()
        wait_until(lambda: made.sender.state == "refused")
        assert (made.waiting(), made.dead_letters()) == (1, [])
        wait_until(lambda: ["a record is refused" in line for line in lines(caplog)] == [True])
        assert "WARNING" in caplog.text
        made.put("next")
        made.drained()
        assert [names for names, _ in backend.calls] == [["poison"], ["next"], ["poison"]]
        (dead_letter,) = made.dead_letters()
        assert (dead_letter.kind, dead_letter.owner, dead_letter.content, dead_letter.attempts, dead_letter.count) == (
            "record", "out", encoded("poison"), 2, 1,
        )  # fmt: skip
        wait_until(lambda: made.sender.state == "idle")
        assert made.sender.last_error == ""
    assert sum("answers again" in line for line in lines(caplog)) == 1


def test_a_good_record_before_the_bad_one_settles_it_inside_the_batch(tmp_path: Path, backend: Backend) -> None:
    backend.rule = refusing(["bad"])
    with rig(tmp_path, backend.exporter(), settings(blocked=SLOW)) as made:
        made.put("good", "bad")
        made.start()
        made.drained()
        assert [names for names, _ in backend.calls] == [["good", "bad"], ["good"], ["bad"]]
        assert made.dead_letter_names() == ["bad"]


def test_two_bad_records_beside_each_other_wait_for_the_next_that_is_taken(tmp_path: Path, http: Backend) -> None:
    """Nothing was taken since they were refused together: the backend can have broken after `good`."""
    http.rule = refusing(["bad", "bad too"])
    with rig(tmp_path, http.exporter(), settings(blocked=SLOW)) as made:
        made.put("good", "good too", "bad", "bad too")
        made.start()
        wait_until(lambda: made.sender.state == "blocked")
        assert (http.taken, made.waiting(), made.dead_letters()) == (["good", "good too"], 2, [])
        made.put("next")
        made.drained()
        assert made.dead_letter_names() == ["bad", "bad too"]


@pytest.mark.parametrize("names", slow_except([["bad", "good"], ["good", "too", "bad", "last"]], ["bad", "good"]))
@pytest.mark.parametrize("kind", ["later", "blocked"])
def test_a_limit_on_the_rate_of_requests_holds_up_nothing(
    tmp_path: Path, http: Backend, names: list[str], kind: Kind
) -> None:
    """A request soon after another one is refused, as by nginx without a burst. The sender leaves a pause then.

    The bad record may need later ones, if the others were taken too early to be evidence.
    """
    taken_at = 0.0

    def rule(names: list[str]) -> Kind:
        nonlocal taken_at
        if time.monotonic() - taken_at < 0.1:
            return kind
        taken_at = time.monotonic()
        return "rejected" if "bad" in names else "delivered"

    http.rule = rule
    with rig(tmp_path, http.exporter(), settings(between_probes=0.1)) as made:
        made.put(*names)
        made.start()
        good = {*names} - {"bad"}
        wait_until(lambda: {*http.taken} == good)
        for name in named(50, "later"):
            if made.waiting():
                made.put(name)
                good.add(name)
                time.sleep(0.2)
        made.drained()
        assert made.dead_letter_names() == ["bad"]
        assert sorted(http.taken) == sorted(good), "each once"


@pytest.mark.parametrize("command", ["resume", "skip", "shutdown"])
def test_a_command_ends_the_pause_between_two_sends(tmp_path: Path, http: Backend, command: str) -> None:
    http.rule = lambda names: "later" if http.calls else "rejected"
    with rig(tmp_path, http.exporter(), settings(between_probes=30.0)) as made:
        made.put("a")
        made.start()
        wait_until(lambda: made.sender.state == "retrying")
        time.sleep(0.15)  # the wait for the next attempt is over then, in most cases
        http.rule = lambda names: "delivered"
        if command == "resume":
            made.sender.resume()
        elif command == "skip":
            made.skip()
        else:
            made.sender.shutdown()
        wait_until(lambda: made.sender.state in ("idle", "stopped"), within=20.0)
        assert http.count("later") == 1
        assert len(http.taken) == (command == "resume")
        assert len(made.dead_letters()) == (command == "skip")


def test_a_wrong_path_that_answers_400_gives_nothing_up_as_changes_come_one_by_one(
    tmp_path: Path, http: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """And once it is repaired at the backend, the head is sent again, and then the rest."""
    http.rule = lambda names: "rejected"
    with rig(tmp_path, http.exporter(), settings(blocked=SLOW)) as made:
        made.start()
        for number, name in enumerate(named(5), 1):
            made.put(name)
            wait_until(lambda number=number: http.count("rejected") >= number)  # type: ignore[misc] # mypy can't see it
            wait_until(lambda: made.sender.state in ("refused", "blocked"))
        wait_until(lambda: made.sender.state == "blocked")
        assert (made.waiting(), made.dead_letters()) == (5, [])
        http.rule = lambda names: "delivered"
        made.sender.resume()
        made.drained()
        assert http.taken == named(5), "the head first"
        assert made.dead_letters() == []
    first, second, last = lines(caplog)
    assert first.startswith("out: a record is refused: HTTP 400 Bad Request from http://127.0.0.1")
    assert second.startswith("out is blocked until somebody repairs it: nothing is taken: each record ")
    assert f"then run `statsig-otel queue resume out --directory {made.queue.directory.path}`" in second
    assert last.startswith("out answers again after ")


def test_a_wrong_path_that_is_repaired_by_a_reload_gives_nothing_up(
    tmp_path: Path, http: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """The evidence ends with the reload: what the exporter of before took says nothing about the one of now."""
    http.rule = lambda names: "rejected"
    with Backend() as right, rig(tmp_path, http.exporter(), settings(blocked=SLOW)) as made:
        made.put("a", "b")
        made.start()
        wait_until(lambda: made.sender.state == "blocked")
        made.sender.shutdown()
        renewed = QueueSender(made.queue.cursor("out"), right.exporter(), settings())
        renewed.start(instead_of=made.sender)
        made.senders["out"] = renewed
        made.drained()
        assert right.taken == ["a", "b"]
        assert made.dead_letters() == []
    assert lines(caplog)[-1].startswith("out answers again after ")


def test_a_change_of_the_exporter_s_secrets_ends_the_evidence(tmp_path: Path, http: Backend) -> None:
    """`a` was taken out of turn by the exporter of before. It is not sent again, but it tells nothing any more."""
    gate = threading.Event()

    def rule(names: list[str]) -> Kind:
        if names == ["poison"] and "next" in http.taken:
            assert gate.wait(30)
        return "rejected" if "poison" in names else "delivered"

    http.rule = rule
    with rig(tmp_path, http.exporter(), settings(blocked=SLOW)) as made:
        made.put("poison")
        made.start()
        wait_until(lambda: made.sender.state == "refused")
        made.put("next")
        wait_until(lambda: [names for names, _ in http.calls].count(["poison"]) >= 1 and "next" in http.taken)
        made.sender.resume(renewed=True)
        http.rule = refusing(["poison"])
        gate.set()
        wait_until(lambda: made.sender.state == "refused" or made.waiting() == 0)
        made.put("last")
        made.drained()
        assert made.dead_letter_names() == ["poison"]
        assert http.taken == ["next", "last"], "each once"


@pytest.mark.parametrize(("count", "most"), [(60, 50), pytest.param(600, 512, marks=pytest.mark.slow)])
def test_a_backlog_that_is_too_old_holds_up_no_younger_change(
    tmp_path: Path, http: Backend, count: int, most: int
) -> None:
    """Loki's default refuses what is a week old."""
    old, young = named(count, "old"), named(20, "young")
    http.rule = lambda names: "rejected" if any(name.startswith("old") for name in names) else "delivered"
    with rig(tmp_path, http.exporter(), settings(blocked=SLOW, max_records=most)) as made:
        made.put(*old)
        made.start()
        wait_until(lambda: made.sender.state == "blocked")
        assert made.dead_letters() == []
        made.put(*young)
        made.drained()
        assert made.dead_letter_names() == old
        assert sorted(http.taken) == young, "each once"
        assert len(http.calls) <= 2 * 2 * count + 20


def test_a_change_that_is_refused_hides_none_that_came_with_it(tmp_path: Path, http: Backend) -> None:
    """A webhook may have its changes newest first. Nothing else comes, and no attempt is due for a long time."""
    old, mixed = named(8, "old"), ["old young", *named(5, "young"), "old last"]
    http.rule = lambda names: "rejected" if any(name.startswith("old") for name in names) else "delivered"
    with rig(tmp_path, http.exporter(), settings(blocked=SLOW, max_records=8)) as made:
        made.put(*old)
        made.start()
        wait_until(lambda: len(http.calls) == 15 and made.sender.state == "blocked")  # each was tried alone
        made.put(*mixed)
        made.drained()
        assert made.dead_letter_names() == [*old, "old young", "old last"]
        assert [names for names, _ in http.calls[15:17]] == [["old last"], ["old young", *named(5, "young")]]
        assert sorted(http.taken) == named(5, "young"), "each once"


def test_once_each_record_was_tried_alone_only_a_new_one_is_sent(tmp_path: Path, http: Backend) -> None:
    http.rule = lambda names: "rejected"
    names = named(12)
    with rig(tmp_path, http.exporter(), settings(blocked=SLOW, max_records=3)) as made:
        made.put(*names)
        made.start()
        wait_until(lambda: http.calls[-1:] == [(["r0010"], "rejected")])
        made.put("new")
        wait_until(lambda: http.calls[-1] == (["new"], "rejected"))
        alone = [sent[0] for sent, _ in http.calls if len(sent) == 1]
        assert alone == [*names[:3], "r0011", *names[3:11], "new"], "the newest, and the rest in batches"


@pytest.mark.parametrize("renewed", [False, True])
def test_after_a_repair_what_was_refused_is_sent_as_if_it_was_new(
    tmp_path: Path, http: Backend, *, renewed: bool
) -> None:
    """The head and the newest one are bad, and no attempt is due for a long time."""
    http.rule = lambda names: "rejected"
    with rig(tmp_path, http.exporter(), settings(blocked=SLOW, max_records=8)) as made:
        made.put("bad", *named(20), "bad too")
        made.start()
        wait_until(lambda: len([names for names, _ in http.calls if len(names) == 1]) == 22)
        http.rule = refusing(["bad", "bad too"])
        made.sender.resume(renewed=renewed)
        wait_until(lambda: sorted(http.taken) == named(20))
        made.put("last")
        made.drained()
        assert made.dead_letter_names() == ["bad", "bad too"]
        assert sorted(http.taken) == ["last", *named(20)], "each once"


def test_a_skip_does_not_send_again_what_was_refused(tmp_path: Path, http: Backend) -> None:
    """Only the next head. With a hundred records, a person may skip one by one."""
    http.rule = lambda names: "rejected"
    with rig(tmp_path, http.exporter(), settings(blocked=SLOW)) as made:
        made.put(*named(4))
        made.start()
        wait_until(lambda: made.sender.state == "blocked")
        calls = len(http.calls)
        made.skip()
        wait_until(lambda: http.calls[calls:] == [(["r0001"], "rejected"), (["r0003"], "rejected")])


def test_a_partial_success_that_refuses_all_ends_no_outage(
    tmp_path: Path, http: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not sent again, but it has taken nothing."""
    http.rule = lambda names: "rejected" if "head" in names else "partial"
    with rig(tmp_path, http.exporter(), settings(blocked=SLOW)) as made:
        made.put("head")
        made.start()
        wait_until(lambda: made.sender.state == "refused")
        outage = made.sender.outage
        for name in named(3):
            made.put(name)
            wait_until(lambda name=name: http.calls[-1][0] == [name])  # type: ignore[misc] # mypy can't see the default
        http.rule = refusing(["head"])
        time.sleep(0.05)
        assert made.sender.outage is outage
        assert (made.waiting(), made.sender.state, made.dead_letters()) == (4, "refused", [])
        made.put("good")
        made.drained()
        assert [(one.kind, one.count) for one in made.dead_letters()] == [("record", 1), *[("batch", 1)] * 3]
        assert [names for names, _ in http.calls] == [["head"], *[[name] for name in named(3)], ["good"], ["head"]]
    assert sum("answers again" in line for line in lines(caplog)) == 1


def test_new_changes_are_tried_at_most_once_a_second(tmp_path: Path, http: Backend) -> None:
    http.rule = lambda names: "rejected"
    pause = 0.15
    with rig(tmp_path, http.exporter(), settings(blocked=SLOW, between_probes=pause)) as made:
        made.put("head")
        made.start()
        wait_until(lambda: made.sender.state == "refused")
        for name in named(20):
            made.put(name)
            time.sleep(0.02)
        wait_until(lambda: {("head",), *((name,) for name in named(20))} <= {tuple(names) for names, _ in http.calls})
        sent = reversed([*zip(http.calls, http.times, strict=True)])
        first = {name: time for (names, _), time in sent for name in names}
        probes = sorted({*first.values()})[1:]
        assert len(probes) <= 4 + (probes[-1] - probes[0]) / pause
        assert (made.waiting(), made.dead_letters()) == (21, [])


def test_a_slow_attempt_sends_the_head_and_one_of_the_others_in_turn(tmp_path: Path, http: Backend) -> None:
    http.rule = lambda names: "rejected"
    with rig(tmp_path, http.exporter()) as made:
        made.put(*named(3))
        made.start()
        wait_until(lambda: made.sender.attempts >= 5)
        made.sender.shutdown()
        after = [names[0] for names, _ in http.calls[5:] if len(names) == 1]
        assert [sorted(after[index : index + 2]) for index in (0, 2, 4)] == [
            ["r0000", "r0002"],
            ["r0000", "r0001"],
            ["r0000", "r0002"],
        ]


@pytest.mark.parametrize("outage", ["later", "blocked"])
def test_a_failure_of_another_kind_ends_the_evidence(tmp_path: Path, http: Backend, outage: Kind) -> None:
    """The probe is taken, and then the backend fails otherwise: it may be a different one after that."""

    def rule(names: list[str]) -> Kind:
        if names == ["probe"]:
            return "delivered"
        return outage if http.taken and not http.count(outage) else "rejected"

    http.rule = rule
    with rig(tmp_path, http.exporter()) as made:
        made.put("head")
        made.start()
        wait_until(lambda: made.sender.state == "refused")
        made.put("probe")
        taken: tuple[list[str], Kind] = (["probe"], "delivered")
        wait_until(lambda: taken in http.calls and len(http.calls) >= http.calls.index(taken) + 5)
        since = http.calls[http.calls.index(taken) + 1 :]
        assert since[:3] == [(["head"], outage), (["head"], "rejected"), (["head"], "rejected")]
        assert (made.waiting(), made.dead_letters()) == (2, [])
        http.rule = refusing(["head"])
        made.put("last")
        made.drained()
        assert made.dead_letter_names() == ["head"]
        assert http.taken == ["probe", "last"], "the probe is not sent again"


def test_after_a_crash_nothing_is_lost_and_the_probe_may_come_again(tmp_path: Path, http: Backend) -> None:
    """The evidence lives in memory. Here the service ends between the probe and the next attempt."""
    http.rule = lambda names: "rejected" if "poison" in names else "delivered"
    gate = threading.Event()
    with rig(tmp_path, http.exporter(), settings(blocked=SLOW)) as made:
        made.put("poison")
        made.start()
        wait_until(lambda: made.sender.state == "refused")
        http.rule = lambda names: "delivered" if names == ["next"] else "hang"
        made.put("next")
        http.sink.wait_for(3)
    assert http.taken == ["next"]
    gate.set()
    http.sink.release()
    http.rule = refusing(["poison"])
    with rig(tmp_path, http.exporter()) as made:
        made.start()
        made.drained()
        assert made.dead_letter_names() == ["poison"]
    assert http.taken == ["next", "next"]


def test_an_exporter_that_refuses_holds_up_no_other(tmp_path: Path) -> None:
    with Backend() as well, Backend() as ill:
        ill.rule = lambda names: "rejected"
        made = Rig(tmp_path, {"well": (well.exporter(), settings()), "ill": (ill.exporter(), settings(blocked=SLOW))})
        made.start()
        try:
            for name in named(10):
                made.put(name)
            made.drained("well")
            wait_until(lambda: made.senders["ill"].state == "blocked")
            assert well.taken == named(10)
            assert (made.waiting("ill"), made.dead_letters()) == (10, [])
            made.put("bad")
            ill.rule = refusing(["bad"])
            made.senders["ill"].resume()
            made.put("last")
            made.drained("ill")
            assert made.dead_letter_names() == ["bad"]
            assert sorted(ill.taken) == sorted([*named(10), "last"])
        finally:
            made.close()


def test_500_is_a_passing_fault_and_after_a_time_the_data_s(tmp_path: Path, backend: Backend) -> None:
    """A Collector without a queue answers so to what its backend refuses for good."""
    names = named(40)
    backend.rule = refusing(["r0011"], "broken")
    with rig(tmp_path, backend.exporter(), settings(refused_after=0.3)) as made:
        made.put(*names)
        made.start()
        wait_until(lambda: sorted(backend.taken) == [name for name in names if name != "r0011"])
        while not made.dead_letters():
            names.append(f"s{len(names):04}")
            made.put(names[-1])
            wait_until(lambda: names[-1] in backend.taken)
        made.drained()
        assert made.dead_letter_names() == ["r0011"]
        assert sorted(backend.taken) == [name for name in names if name != "r0011"], "each once"


def test_500_for_everything_gives_nothing_up_however_long_it_takes(tmp_path: Path, http: Backend) -> None:
    http.rule = lambda names: "broken"
    with rig(tmp_path, http.exporter(), settings(refused_after=0.1)) as made:
        made.put(*named(5))
        made.start()
        wait_until(lambda: made.sender.attempts >= 8)
        assert (made.waiting(), made.dead_letters()) == (5, [])
        http.rule = lambda names: "delivered"
        made.drained()
        assert sorted(http.taken) == named(5)


class OneByOne:
    """An exporter whose backend takes one record at a time. What fails ends the batch."""

    def __init__(self, post: Callable[[str], Outcome]) -> None:
        self._post = post
        self.posted: list[str] = []

    def start(self) -> None:
        """Nothing to open."""

    def send(self, payload: bytes, count: int, timeout: float) -> Outcome:
        for done, name in enumerate(names_in(payload)):
            outcome = self._post(name)
            if not isinstance(outcome, Delivered):
                return Delivered(only=range(done)) if done else outcome
            self.posted.append(name)
        return Delivered()

    def shutdown(self) -> None:
        """Nothing to close."""


def test_an_exporter_can_say_that_the_first_records_were_delivered(tmp_path: Path) -> None:
    """Each is posted once, across a temporary failure and a refusal in the middle."""
    faults: dict[str, list[Outcome]] = {"r0007": [RetryLater("503"), RetryLater("503")], "r0020": [Blocked("401")]}

    def post(name: str) -> Outcome:
        if name in ("r0003", "r0012", "r0013"):
            return Rejected("400")
        return faults[name].pop() if faults.get(name) else Delivered()

    exporter = OneByOne(post)
    names = named(30)
    with rig(tmp_path, exporter) as made:
        made.put(*names)
        made.start()
        made.drained()
        assert made.dead_letter_names() == ["r0003", "r0012", "r0013"]
    assert sorted(exporter.posted) == [name for name in names if name not in ("r0003", "r0012", "r0013")]


def test_that_an_exporter_stays_blocked_is_said_again(
    tmp_path: Path, http: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    http.rule = lambda names: "blocked"
    with rig(tmp_path, http.exporter(), settings(reminder=0.2)) as made:
        made.put("a")
        made.start()
        wait_until(lambda: len(lines(caplog)) >= 3)
    assert {record.levelno for record in caplog.records if "is blocked" in record.getMessage()} == {logging.ERROR}
    assert all("then run `statsig-otel queue resume out --directory " in line for line in lines(caplog))


def test_a_delivery_is_a_line_at_debug(tmp_path: Path, http: Backend, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "statsig_otel")
    with rig(tmp_path, http.exporter()) as made:
        made.put(*named(3))
        made.start()
        made.drained()
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
    assert [line.partition(", in ")[0] for line in said if "records" in line] == ["out: records delivered: 3 of 3"]
