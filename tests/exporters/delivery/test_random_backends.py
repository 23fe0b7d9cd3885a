"""Backends of many kinds, by chance: what is good arrives soon, what is bad is settled, and requests stay few."""

import random
from dataclasses import dataclass, field

import pytest

from statsig_otel.exporters.delivery.decisions import Decisions
from statsig_otel.exporters.exporter import Blocked, Delivered, Outcome, Rejected, RetryLater
from tests.exporters.delivery.simulation import Simulation

LONGEST_WAIT = 3600.0
"""Of a good record, in seconds. A limit of one request in three seconds alone makes 300 requests take 900. A backend
that is repaired badly is asked about each record again."""

SHARE_BADLY_REPAIRED = 0.3
"""Of the backends: they answer 500 to some good records, and then 400 to all for a time."""

MOST_BURIED = 12
"""Good records, by a backend that takes some and then refuses all: ten stand before one that was taken."""

AWAY = (RetryLater("HTTP 503"), RetryLater("HTTP 500", may_be_data=True), Blocked("HTTP 401"))


@dataclass
class Backend:
    """A backend that judges each record in the same way each time, and has limits and outages.

    Attributes:
        refused: The records that get 400.
        broken: The records that get 500.
        spacing: The least seconds between two requests, else 429; a limit without a burst.
        unlucky: The share of requests that get 503 by chance.
        most: The most records of a request, else 413.
        outages: Its outages: from and to when, and how all is answered then.
        faulty: The good records that get 500 until the first outage.
    """

    chance: random.Random
    refused: set[int]
    broken: set[int]
    spacing: float = 0.0
    unlucky: float = 0.0
    most: int = 1000
    outages: list[tuple[float, float, Outcome]] = field(default_factory=list)
    faulty: set[int] = field(default_factory=set)
    taken_at: float = -100.0

    def answer(self, seqs: tuple[int, ...], now: float) -> Outcome:
        for begin, end, outcome in self.outages:
            if begin <= now < end:
                return outcome
        if now - self.taken_at < self.spacing:
            return RetryLater("HTTP 429")
        self.taken_at = now
        if self.chance.random() < self.unlucky:
            return RetryLater("HTTP 503")
        if len(seqs) > self.most:
            return Rejected("HTTP 413")
        if self.broken.intersection(seqs) or (self.faulty.intersection(seqs) and now < self.outages[0][0]):
            return RetryLater("HTTP 500", may_be_data=True)
        return Rejected("HTTP 400") if self.refused.intersection(seqs) else Delivered()


def backend(chance: random.Random, last: int) -> Backend:
    bad = [seq for seq in range(1, last) if chance.random() < chance.choice([0.02, 0.1, 0.5])]
    made = Backend(chance, set(), set())
    for seq in bad:
        chance.choice([made.refused, made.refused, made.broken]).add(seq)
    kind = chance.randrange(4)
    if kind == 0:
        made.spacing = chance.choice([0.1, 1.0, 3.0])
    if kind == 1:
        made.unlucky = chance.choice([0.02, 0.1, 0.2])
    made.most = chance.choice([1000, 1000, 1, 8])
    begin = 0.0
    for _ in range(chance.randrange(3)):
        begin += chance.choice([1.0, 60.0, 900.0])
        end = begin + chance.choice([2.0, 120.0, 500.0])
        made.outages.append((begin, end, chance.choice(AWAY)))
        begin = end
    if chance.random() < SHARE_BADLY_REPAIRED:
        made.faulty = {seq for seq in range(1, last) if chance.random() < chance.choice([0.1, 0.5])} - {*bad}
        begin = chance.choice([60.0, 300.0])
        made.outages = [(begin, begin + chance.choice([60.0, 3600.0]), Rejected("HTTP 400 for all"))]
    return made


def deliver(seed: int) -> None:
    """Let records arrive, once many and then one a minute, until all are settled."""
    chance = random.Random(seed)
    first, later = chance.choice([1, 5, 40, 120]), 60
    judge = backend(chance, first + later)
    bad = judge.refused | judge.broken
    arrived_at: dict[int, float] = {}
    taken_at: dict[int, float] = {}
    refused_at: dict[int, float] = {}  # each good record's first refusal alone
    had_faults: set[int] = set()  # the records that got 500 since the last restart
    proven: set[int] = set()  # the good records that were refused alone after another was taken since then

    def answer(seqs: tuple[int, ...]) -> Outcome:
        outcome = judge.answer(seqs, made.now)
        if isinstance(outcome, Delivered):
            taken_at.update((seq, made.now) for seq in seqs if seq not in taken_at)
        elif isinstance(outcome, RetryLater) and outcome.may_be_data:
            had_faults.update(seqs)
        elif isinstance(outcome, Rejected) and len(seqs) == 1:
            first = refused_at.setdefault(seqs[0], made.now)
            proven.update(seqs if max(taken_at.values(), default=-1.0) > first else ())
        return outcome

    made = Simulation(answer)
    restart = chance.choice([0, 0, 30])
    while len(arrived_at) < first + later or (made.position < len(made.arrived) and made.now < 40000.0):
        new = range(1, first + 1) if not arrived_at else [len(arrived_at) + 1]
        arrived_at.update(dict.fromkeys(new, made.now))
        made.run(60.0, *new)
        if len(arrived_at) == first + restart:
            made.decisions = Decisions("out", made.settings)
            had_faults.clear()
    good = arrived_at.keys() - bad
    buried = good.intersection(made.dead_letters) - proven
    assert not had_faults & buried, "after faults, a good record became a dead letter at its first refusal"
    refuses_all = any(isinstance(outcome, Rejected) for *_, outcome in judge.outages)
    assert len(good.intersection(made.dead_letters)) <= refuses_all * MOST_BURIED, "good records became dead letters"
    assert made.position == len(made.arrived), "something is not settled"
    back_at = max((end for _, end, _ in judge.outages), default=0.0)
    longest = max(taken_at[seq] - max(arrived_at[seq], back_at) for seq in good & taken_at.keys())
    assert longest < LONGEST_WAIT, f"a good record waited for {longest:.0f} s"
    assert len(made.sends) < 10 * len(arrived_at) + made.now / 5, "too many requests"


@pytest.mark.parametrize("seeds", [range(25), pytest.param(range(25, 2000), marks=pytest.mark.slow)])
def test_what_is_good_arrives_and_what_is_bad_is_settled_whatever_the_backend_is_like(seeds: range) -> None:
    for seed in seeds:
        try:
            deliver(seed)
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise
