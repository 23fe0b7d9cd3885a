"""A sender without threads, in seconds of its own."""

from collections.abc import Callable
from typing import Self

from statsig_otel.exporters.delivery.decisions import Decisions
from statsig_otel.exporters.delivery.settings import DeliverySettings
from statsig_otel.exporters.exporter import Delivered, Outcome
from statsig_otel.exporters.queue.records import Records
from tests.exporters.delivery.helpers import records


class Simulation:
    """A sender without threads, in its own seconds: a send takes 5 ms, a wait five minutes, or 5 s after a failure."""

    def __init__(self, answer: Callable[[tuple[int, ...]], Outcome]) -> None:
        self.answer = answer
        self.settings = DeliverySettings(max_records=64)
        self.decisions = Decisions("out", self.settings)
        self.now = 0.0
        self.next_attempt = 300.0
        self.arrived = records(())
        self.position = 0
        self.taken: list[int] = []
        self.dead_letters: list[int] = []
        self.sends: list[tuple[int, ...]] = []
        self.read = 0  # how many records the decisions looked at

    def newest(self, up_to: int, passed_over: Callable[[int], bool]) -> Records:
        for seq in range(min(up_to, len(self.arrived)), self.position, -1):
            self.read += 1
            if not passed_over(seq):
                return self.arrived[seq - 1 : seq]
        return Records()

    def read_behind(self, after: int, count: int, size: int) -> Records:
        assert (count, size) == (self.settings.max_records, self.settings.max_bytes)
        after = max(after, self.position)
        self.read += len(found := self.arrived[after : after + count])
        return found

    def run(self, seconds: float, *arriving: int) -> Self:
        """Let records arrive, and then time pass."""
        self.arrived += records(arriving)
        end = self.now + seconds
        while self.now < end and (batch := self.arrived[self.position : self.position + self.settings.max_records]):
            if (decided := self.decisions.decided(batch)) is not None:
                self.dead_letters += decided.records.seqs if decided.dead_letters else ()
                self.position = decided.records.seqs[-1]
                self.decisions.ticked_off(decided.records)
            elif (pause := self.decisions.send_pause(self.now)) > 0:
                self.now += pause
            elif part := self.decisions.next(batch, self, self.now):
                outcome = self.answer(part.seqs)
                self.sends.append(part.seqs)
                self.taken += part.seqs if isinstance(outcome, Delivered) else ()
                self.now += 0.005
                if self.decisions.record_outcome(part, outcome, self.now):
                    self.now += 5.0
                    self.decisions.try_again()
            elif (pause := self.decisions.probe_pause(self.now)) > 0:
                self.now += pause
            elif self.decisions.failure_of_head(batch.seqs[0]).state == "retrying" and self.now + 5.0 < end:
                self.now += 5.0
                self.decisions.try_again()
            elif self.next_attempt < end:
                self.now = max(self.now, self.next_attempt)
                self.next_attempt = self.now + 300.0
                self.decisions.try_again()
            else:
                break
        self.now = max(self.now, end)
        return self
