"""The queue against a simple model: whatever happens in whatever order, nothing that was acknowledged is lost."""

import math
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from statsig_otel.exporters.consumer import RefusedError
from statsig_otel.exporters.queue import store
from statsig_otel.exporters.queue.queue import DurableQueue
from statsig_otel.exporters.queue.records import Records
from statsig_otel.exporters.queue.store import DeadLetter
from statsig_otel.exporters.routing import CurrentRouting, QueuedExporter, Route, Routing
from tests.exporters.queue.helpers import (
    PATIENCE,
    batch,
    blocked,
    check_counters,
    consume,
    copy_of,
    count,
    dead_letters_in,
    numbers_of,
    tidied,
)

WINDOW = 100.0
LIMIT = 12
MOST_SOON = 10
"""Records ticked off ahead after which a commit is due in any case: after some more batches a cursor waits for it."""

RECEIVERS = ("x", "y")
EXPORTERS = ("a", "b", "c", "limited")

subsets = st.sets(st.sampled_from(EXPORTERS), min_size=1)
changes = st.lists(st.integers(0, 12), max_size=5)


@dataclass
class ExporterModel:
    """An exporter as the model knows it: what waits for it, in order, and what became of the rest.

    Attributes:
        soon: The last that were delivered, as far as they are ticked off ahead of the disk.
        ahead: What was read ahead: the most that it was to be, and what was there at that time.
    """

    waiting: list[int] = field(default_factory=list)
    owed: list[int] = field(default_factory=list)
    delivered: list[int] = field(default_factory=list)
    dead_letters: list[int] = field(default_factory=list)
    soon: list[int] = field(default_factory=list)
    ahead: tuple[int, list[int]] = (0, [])

    def crash(self) -> None:
        """What is not on the disk comes again."""
        del self.delivered[len(self.delivered) - len(self.soon) :]
        self.waiting[:0] = self.soon
        self.soon = []


class QueueMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp())
        self.directory = self.base / "0"
        self.crashes = 0
        self.now = 1_700_000_000.0
        self.seen: dict[tuple[str, int], float] = {}
        self.models: dict[str, ExporterModel] = {}
        self.names: set[str] = set()
        self.routes: dict[str, set[str]] = {}
        self.invalid = 0

    @initialize(x=subsets, y=subsets)
    def begin(self, x: set[str], y: set[str]) -> None:
        self.routes = {"x": x, "y": y}
        self.open()

    def open(self) -> None:
        names: set[str] = set().union(*self.routes.values())
        self.queue = DurableQueue(
            self.directory, CurrentRouting(self.routing()), min_free_bytes=0, clock=lambda: self.now
        )
        self.queue.start()
        for name in names:
            self.models.setdefault(name, ExporterModel())
        self.names = names

    def routing(self) -> Routing:
        names = set().union(*self.routes.values())
        return Routing(
            {name: Route(tuple(sorted(of)), window=WINDOW) for name, of in self.routes.items()},
            {name: QueuedExporter(queue_size=LIMIT if name == "limited" else None) for name in names},
        )

    def close(self) -> None:
        for name in self.names:
            self.close_cursor(name)
        self.queue.shutdown()

    def close_cursor(self, name: str) -> None:
        self.queue.cursor(name).close()
        self.models[name].soon = []
        self.models[name].ahead = 0, []

    def teardown(self) -> None:
        try:
            if hasattr(self, "queue"):
                self.finish()
        finally:
            shutil.rmtree(self.base)

    def finish(self) -> None:
        try:
            self.restart()
            for name in self.names:
                self.deliver(name, 1000, 0)
                model = self.models[name]
                assert model.waiting == []
                assert sorted(model.delivered + model.dead_letters) == sorted(model.owed)
        finally:  # else the threads of an example that fails run on beside those that come
            self.close()

    @rule(receiver=st.sampled_from(RECEIVERS), numbers=changes, records=st.integers(1, 3), invalid=st.integers(0, 2))
    def append(self, receiver: str, numbers: list[int], records: int, invalid: int) -> None:
        """New changes, duplicates within the batch and of earlier ones, and invalid items."""
        fresh = [
            number
            for number in dict.fromkeys(numbers)
            if self.now - self.seen.get((receiver, number), -WINDOW) >= WINDOW
        ]
        full = bool(numbers or invalid) and self.is_full(receiver, len(fresh) * records)
        answer = consume(self.queue, batch(*numbers, receiver=receiver, records=records, invalid=invalid))
        if full:
            assert isinstance(answer.exception(PATIENCE), RefusedError)
            return
        self.seen |= {(receiver, number): self.now for number in fresh}
        receipt = answer.result(PATIENCE)
        assert (receipt.accepted, receipt.duplicates) == (len(fresh), len(numbers) - len(fresh))
        self.invalid += invalid
        for name in self.routes[receiver]:
            stored = [number for number in fresh for _ in range(records)]
            self.models[name].waiting += stored
            self.models[name].owed += stored

    def is_full(self, receiver: str, records: int) -> bool:
        """Whether a batch is refused; what brings records finds those on the disk that are ticked off soon, too."""
        if "limited" not in self.routes[receiver]:
            return False
        model = self.models["limited"]
        return len(model.waiting) + (len(model.soon) if records else 0) >= LIMIT

    @rule(
        name=st.sampled_from(EXPORTERS),
        at_most=st.integers(1, 6),
        rejected=st.integers(0, 2),
        ahead=st.booleans(),
        due=st.booleans(),
    )
    def deliver(self, name: str, at_most: int, rejected: int, *, ahead: bool = False, due: bool = False) -> None:
        """Read the head, and tick it off with some dead dead_letters_in; or read and tick off ahead of the disk.

        Whether a commit of what is ticked off ahead is due says the example, not the clock: what is on the disk after
        a step must not depend on how fast the machine is.
        """
        if name not in self.names:
            return
        cursor, model = self.queue.cursor(name), self.models[name]
        records = self.read(name, at_most)
        numbers = numbers_of(records)
        assert all(record.intact for record in records)
        if ahead and records:
            cursor.read_ahead(records[-1].seq, at_most, 1 << 20)
            assert cursor._ahead is not None
            cursor._ahead[1].result(PATIENCE)  # before the next step: it finds what is there now
            is_handed_over = due or len(model.soon) >= MOST_SOON
            cursor._tick_at = 0.0 if is_handed_over else math.inf
            cursor.finish_soon(records)
            model.soon = [] if is_handed_over else model.soon + numbers
            model.delivered += numbers
            del model.waiting[: len(numbers)]
            model.ahead = at_most, model.waiting[:at_most]
            return
        bad = records[:rejected]
        cursor.finish(records, [DeadLetter("record", name, "no", record.payload, record.uid) for record in bad])
        model.dead_letters += numbers[: len(bad)]
        model.delivered += numbers[len(bad) :]
        del model.waiting[: len(numbers)]
        if numbers:
            model.soon = []

    @rule(name=st.sampled_from(EXPORTERS))
    def read_only(self, name: str) -> None:
        """What is read and not ticked off is read again."""
        if name in self.names:
            self.read(name, 5)

    def read(self, name: str, at_most: int) -> Records:
        """Read the head: what was read ahead, which can be less than waits by now, or else all that it may be."""
        model = self.models[name]
        (most, found), model.ahead = model.ahead, (0, [])
        records = self.queue.cursor(name).read(at_most, 1 << 20)
        assert numbers_of(records) == (found if found and most == at_most else model.waiting[:at_most])
        return records

    @rule()
    def tidy(self) -> None:
        tidied(self.queue)

    @rule(seconds=st.sampled_from([1.0, WINDOW - 1, WINDOW, 5 * WINDOW]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def restart(self) -> None:
        self.close()
        self.open()

    @rule(settled=st.booleans())
    def crash(self, *, settled: bool) -> None:
        """Go on from what a crash at this moment leaves on the disk."""
        self.crashes += 1
        for name in self.names if settled else ():
            self.queue.cursor(name).flush()
            self.models[name].soon = []
        with blocked(self.queue):  # it would tidy up between the copies of the file and of its log
            left = copy_of(self.directory, self.base / str(self.crashes))
        for model in self.models.values():
            model.crash()
        self.close()
        self.directory = left
        self.open()

    @rule(x=subsets, y=subsets, running=st.booleans())
    def reconfigure(self, x: set[str], y: set[str], *, running: bool) -> None:
        """Exporters come, go, and change receivers; one that is away keeps its cursor and gets nothing new."""
        self.routes = {"x": x, "y": y}
        if running:
            for name in self.names - (x | y):
                self.close_cursor(name)
            self.queue.reconfigure(self.routing())
            self.names = x | y
            for name in self.names:
                self.models.setdefault(name, ExporterModel())
        else:
            self.close()
            self.open()
        forgotten = {state.name for state in self.queue.unconfigured_exporters()}
        assert forgotten == set(self.models) - self.names

    @precondition(lambda self: set(self.models) - self.names)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        """By command: the only way in which what waits is given up."""
        name = data.draw(st.sampled_from(sorted(set(self.models) - self.names)))
        removed = self.queue.submit(lambda connection: store.remove_exporter(connection, name)).result(PATIENCE)
        assert removed is not None
        assert removed.waiting == len(self.models[name].waiting)
        del self.models[name]

    @invariant()
    def counters_are_right(self) -> None:
        if hasattr(self, "queue"):
            # First, for what looks at the disk has the cursors look, too.
            assert self.queue.sizes() == {name: len(self.models[name].waiting) for name in self.names}
            check_counters(self.queue, ahead={name: len(model.soon) for name, model in self.models.items()})
            waiting = {state.name: state.waiting for state in self.queue.states()}
            assert waiting == {name: len(model.waiting) + len(model.soon) for name, model in self.models.items()}

    @invariant()
    def dead_letters_are_all_there(self) -> None:
        if hasattr(self, "queue"):
            kept = dead_letters_in(self.queue.database)
            assert sum(dead_letter.kind == "item" for dead_letter in kept) == self.invalid
            for name, model in self.models.items():
                found = [int.from_bytes(dead_letter.uid or b"") for dead_letter in kept if dead_letter.owner == name]
                assert found[len(found) - len(model.dead_letters) :] == model.dead_letters

    @invariant()
    def nothing_is_kept_for_nobody(self) -> None:
        if hasattr(self, "queue") and not any(model.waiting or model.soon for model in self.models.values()):
            tidied(self.queue)
            assert count(self.queue.database) == 0


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(
    max_examples=settings().max_examples // 3,
    stateful_step_count=25,
    # What fails is said at once, with the steps that led to it. To find fewer takes minutes, which is more than a test
    # may take: it would end as a timeout that tells nothing.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
