"""Compares entries of the audit log with the changes that webhooks brought. Pure functions, without I/O.

Neither side has an id that the other one has. So an entry and a change can be the same if the name is equal, the user
may be the same, and their times differ by at most a tolerance. Where several can be, each change is of one entry at
most, and as many changes as possible have an entry: that is a maximum matching of a bipartite graph. Nothing is guessed
when there are several of them: the outcomes of an entry are what it can be in any of them (Dulmage and Mendelsohn,
"Coverings of bipartite graphs", 1958).

The texts are compared only where something is left to decide, since Statsig's two texts for one change may differ. If a
change's text is that of an entry that it can belong to, it belongs to one with that text, provided that as many changes
as before then have an entry.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from statsig_otel.exporters.arrival import Arrival, comparable
from statsig_otel.plugin.audit_log.entries import AuditEntry

Outcome = Literal["received", "filtered", "missed"]

_Graph: TypeAlias = dict[int, list[int]]
"""For each entry, the changes that it can be. Both are numbers: their positions."""


@dataclass(frozen=True, slots=True)
class Matched:
    """The possible verdicts on one entry.

    Attributes:
        outcomes: What it can be: a single one if that is certain.
        uid: The uid of its change, if that is certain.
    """

    outcomes: frozenset[Outcome]
    uid: str | None = None


@dataclass(frozen=True, slots=True)
class Matching:
    """The verdicts on all entries.

    Attributes:
        entries: What can be said of each, in order.
        missed: How many of the wanted entries are missed at least, also where it can't be said which.
    """

    entries: tuple[Matched, ...]
    missed: int


_MISSED: Final = Matched(frozenset({"missed"}))


def match(
    entries: Sequence[AuditEntry],
    arrivals: Sequence[Arrival],
    *,
    tolerance: float,
    wanted: Callable[[AuditEntry], bool] = lambda _: True,
) -> Matching:
    """Say of each entry whether a webhook brought its change.

    Args:
        entries: All entries that can have a webhook, those within the tolerance before and after the period included.
        arrivals: All changes that came, likewise.
        tolerance: The most seconds between the times of an entry and of its change.
        wanted: Whether an entry counts for `missed`.
    """
    graph = _graph(entries, arrivals, tolerance)
    found = [_MISSED] * len(entries)
    missed = sum(1 for index, entry in enumerate(entries) if index not in graph and wanted(entry))
    for part in _parts(graph):
        pairs = _maximum(part)
        narrowed = _by_text(part, entries, arrivals)
        if len(narrowed_pairs := _maximum(narrowed)) == len(pairs):
            part, pairs = narrowed, narrowed_pairs  # noqa: PLW2901 - the same part, with fewer ways
        for entry, (possible, may_be_missed) in _possible(part, pairs).items():
            outcomes: set[Outcome] = {"filtered" if arrivals[one].filtered else "received" for one in possible}
            is_certain = len(possible) == 1 and not may_be_missed
            uid = arrivals[possible[0]].uid if is_certain else None
            found[entry] = Matched(frozenset(outcomes | {"missed"} if may_be_missed else outcomes), uid)
        # Entries that can have a change at all can have it together with a maximum matching of all.
        counted = {entry: possible for entry, possible in part.items() if wanted(entries[entry])}
        missed += len(counted) - len(_maximum(counted))
    return Matching(tuple(found), missed)


def _graph(entries: Sequence[AuditEntry], arrivals: Sequence[Arrival], tolerance: float) -> _Graph:
    """The changes that each entry can be, without entries that can't be any."""
    by_name: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for position, arrival in enumerate(arrivals):
        by_name[arrival.name].append((arrival.second, position))
    for same in by_name.values():
        same.sort()
    graph: _Graph = {}
    for index, entry in enumerate(entries):
        same = by_name.get(entry.name, [])
        begin = bisect_left(same, (entry.second - tolerance, -1))
        end = bisect_right(same, (entry.second + tolerance, len(arrivals)))
        possible = [position for _, position in same[begin:end] if may_be_by_same_user(entry, arrivals[position])]
        if possible:
            graph[index] = possible
    return graph


def may_be_by_same_user(entry: AuditEntry, arrival: Arrival) -> bool:
    """Whether one of the id, the name and the email address is equal in both, or there is none that both have."""
    fields = (
        (entry.user_id, arrival.user_id),
        (entry.user_name, arrival.user_name),
        (entry.user_email, arrival.user_email),
    )
    known = [(one, other) for one, other in fields if one and other]
    return not known or any(one.casefold() == comparable(other).casefold() for one, other in known)


def _parts(graph: _Graph) -> Iterator[_Graph]:
    """The connected parts of a graph."""
    entries_of: defaultdict[int, list[int]] = defaultdict(list)
    for entry, possible in graph.items():
        for arrival in possible:
            entries_of[arrival].append(entry)
    seen: set[int] = set()
    for first in graph:
        if first in seen:
            continue
        seen.add(first)
        part, waiting = {}, [first]
        while waiting:
            entry = waiting.pop()
            part[entry] = graph[entry]
            for arrival in graph[entry]:  # each leads to its entries once
                neighbours = set(entries_of.pop(arrival, ())) - seen
                seen |= neighbours
                waiting += neighbours
        yield part


def _by_text(part: _Graph, entries: Sequence[AuditEntry], arrivals: Sequence[Arrival]) -> _Graph:
    """The graph in which a change whose text is that of entries can only be one of these."""
    same = {
        arrival
        for entry, possible in part.items()
        for arrival in possible
        if arrivals[arrival].text and arrivals[arrival].text == entries[entry].text
    }
    return {
        entry: [one for one in possible if one not in same or arrivals[one].text == entries[entry].text]
        for entry, possible in part.items()
    }


def _maximum(graph: _Graph) -> dict[int, int]:
    """A maximum matching: entries by their change. Each search for an augmenting path is breadth first."""
    entry_of: dict[int, int] = {}
    exhausted: set[int] = set()
    for entry in graph:
        _augment(graph, entry_of, entry, exhausted)
    return entry_of


def _augment(graph: _Graph, entry_of: dict[int, int], start: int, exhausted: set[int]) -> None:
    """Give one more entry a change, if others can change theirs so that one is left.

    What a search in vain has seen leads to no free change later either, so it is not searched again.
    """
    came_from: dict[int, int] = {}
    has: dict[int, int] = {}  # the change that each entry on the way has now
    waiting = deque([start])
    while waiting:
        entry = waiting.popleft()
        for arrival in graph[entry]:
            if arrival in came_from or arrival in exhausted:
                continue
            came_from[arrival] = entry
            if arrival in entry_of:
                has[entry_of[arrival]] = arrival
                waiting.append(entry_of[arrival])
                continue
            free: int | None = arrival
            while free is not None:
                owner = came_from[free]
                entry_of[free], free = owner, has.get(owner)
            return
    exhausted.update(came_from)


def _possible(graph: _Graph, entry_of: dict[int, int]) -> dict[int, tuple[list[int], bool]]:
    """For each entry the changes that it has in some maximum matching, and whether it has none in some.

    A pair is in some of them if it is in the given one, or on an alternating path that begins at an entry or a change
    without a partner, or on an alternating cycle.
    """
    arrival_of = {entry: arrival for arrival, entry in entry_of.items()}
    # An entry leads to those whose change it could have.
    leads_to = {
        entry: [entry_of[one] for one in possible if one in entry_of and entry_of[one] != entry]
        for entry, possible in graph.items()
    }
    led_from: dict[int, list[int]] = {entry: [] for entry in graph}
    for entry, others in leads_to.items():
        for other in others:
            led_from[other].append(entry)
    without_change = _reachable(leads_to, [entry for entry in graph if entry not in arrival_of])
    # Those who can leave their change to others, since a change without an entry is there for them or behind them.
    with_choice = _reachable(
        led_from, [entry for entry, possible in graph.items() if any(one not in entry_of for one in possible)]
    )
    circle = _circles(leads_to, led_from)
    found: dict[int, tuple[list[int], bool]] = {}
    for entry, possible in graph.items():
        is_free = entry in without_change
        changes = [
            one
            for one in possible
            if is_free
            or one not in entry_of
            or entry_of[one] == entry
            or entry_of[one] in with_choice
            or circle[entry_of[one]] == circle[entry]
        ]
        found[entry] = changes, is_free
    return found


def _reachable(leads_to: dict[int, list[int]], begin: list[int]) -> set[int]:
    seen, waiting = set(begin), list(begin)
    while waiting:
        new = set(leads_to[waiting.pop()]) - seen
        seen |= new
        waiting += new
    return seen


def _circles(leads_to: dict[int, list[int]], led_from: dict[int, list[int]]) -> dict[int, int]:
    """The number of each entry's strongly connected component (Kosaraju's algorithm, without recursion)."""
    order: list[int] = []
    seen: set[int] = set()
    for first, neighbours in leads_to.items():
        if first in seen:
            continue
        seen.add(first)
        path = [(first, iter(neighbours))]
        while path:
            entry, others = path[-1]
            if (other := next((one for one in others if one not in seen), None)) is None:
                order.append(entry)
                path.pop()
            else:
                seen.add(other)
                path.append((other, iter(leads_to[other])))
    circle: dict[int, int] = {}
    for first in reversed(order):
        if first in circle:
            continue
        circle[first], waiting = first, [first]
        while waiting:
            for other in led_from[waiting.pop()]:
                if other not in circle:
                    circle[other] = first
                    waiting.append(other)
    return circle
