"""Which changes of the audit log a webhook brought: against all explanations that there are, and against the truth."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from statsig_otel.exporters.arrival import Arrival
from statsig_otel.plugin.audit_log.entries import AuditEntry
from statsig_otel.plugin.audit_log.matching import Matched, Outcome, match, may_be_by_same_user


class User(NamedTuple):
    """A user, as far as one side knows."""

    id: str | None = None
    name: str | None = None
    email: str | None = None


ADA, BOB = User("u1", "Ada", "ada@example.com"), User("u2", "Bob", "bob@example.com")
TOLERANCE = 2.0


def entry(second: int, name: str = "gate", user: User = ADA, text: str = "Updated Gate", number: int = 0) -> AuditEntry:
    return AuditEntry(f"id{number}", second, name, "gate_update", text, *user)


def arrival(
    second: int,
    name: str = "gate",
    user: User = ADA,
    text: str = "Updated Gate",
    *,
    number: int = 0,
    gone: bool = False,
) -> Arrival:
    return Arrival(f"{number:032x}", second, name, *user, "Gate", "updated", text, gone)


def outcomes(entries: Sequence[AuditEntry], arrivals: Sequence[Arrival]) -> list[set[Outcome]]:
    return [{*one.outcomes} for one in match(entries, arrivals, tolerance=TOLERANCE).entries]


def test_a_change_is_found_by_its_name_its_user_and_its_second() -> None:
    came = [arrival(100)]
    assert outcomes([entry(100)], came) == outcomes([entry(102)], came) == outcomes([entry(98)], came) == [{"received"}]
    for other in (entry(103), entry(97), entry(100, "gate_2"), entry(100, user=BOB)):
        assert outcomes([other], came) == [{"missed"}]


def test_a_user_of_whom_too_little_is_known_may_be_anybody() -> None:
    for who in (User(), User(name="Ada"), User(email="ADA@example.com"), User(id="u1", name="Ada Lovelace")):
        assert outcomes([entry(100, user=who)], [arrival(100)]) == [{"received"}]


def test_spaces_around_the_name_of_a_user_are_not_compared() -> None:
    assert outcomes([entry(100, user=User(name="Ada"))], [arrival(100, user=User(name=" Ada "))]) == [{"received"}]


def test_twins_four_seconds_apart_are_told_apart() -> None:
    """As in the published examples: the same name, user and text."""
    assert outcomes([entry(118), entry(122)], [arrival(122)]) == [{"missed"}, {"received"}]
    assert outcomes([entry(118), entry(122)], [arrival(118), arrival(122)]) == [{"received"}] * 2


def test_of_twins_in_one_second_it_is_said_that_one_is_missed_and_not_which() -> None:
    found = match([entry(100), entry(100)], [arrival(101)], tolerance=TOLERANCE)
    assert [{*one.outcomes} for one in found.entries] == [{"received", "missed"}] * 2
    assert found.missed == 1


def test_the_text_decides_between_entries_and_never_against_the_count() -> None:
    both = [entry(100, text="Created Gate"), entry(101, text="Updated Gate")]
    assert outcomes(both, [arrival(101, text="Created Gate")]) == [{"received"}, {"missed"}]
    assert outcomes(both, [arrival(101, text="Description: new")]) == [{"received", "missed"}] * 2
    # Two webhooks with the text of one entry: one of them is of the other entry.
    twice = [arrival(100, text="Created Gate", number=1), arrival(101, text="Created Gate", number=2)]
    assert outcomes(both, twice) == [{"received"}] * 2


def test_what_the_filter_dropped_came() -> None:
    found = match([entry(100)], [arrival(100, gone=True, number=7)], tolerance=TOLERANCE)
    assert found.entries == (Matched(frozenset({"filtered"}), f"{7:032x}"),)
    both = [arrival(100, number=1), arrival(100, gone=True, number=2)]
    assert outcomes([entry(100), entry(100)], both) == [{"received", "filtered"}] * 2


def test_an_entry_that_does_not_count_can_still_have_had_the_webhook() -> None:
    both = [entry(100, number=1), entry(100, number=2)]
    found = match(both, [arrival(100)], tolerance=TOLERANCE, wanted=lambda one: one.id == "id1")
    assert [{*one.outcomes} for one in found.entries] == [{"received", "missed"}] * 2
    assert found.missed == 0


def test_a_gate_that_a_program_toggles_each_second_is_matched_in_no_time() -> None:
    seconds = range(1000, 3000)
    came = [arrival(second, number=second) for second in seconds if second != 2000]
    found = match([entry(second) for second in seconds], came, tolerance=TOLERANCE)
    assert found.missed == 1
    assert all(len(one.outcomes) == 2 for one in found.entries)
    assert match([entry(second) for second in seconds], [*came, arrival(2000)], tolerance=TOLERANCE).missed == 0


def test_very_many_changes_that_can_not_be_told_apart_are_counted_in_no_time() -> None:
    """In steps that grow with the number of pairs, and not with a power of it: else these take minutes."""
    found = match([entry(1000)] * 300, [arrival(1000)] * 200, tolerance=TOLERANCE)
    assert found.missed == 100
    assert {one.outcomes for one in found.entries} == {frozenset({"received", "missed"})}


USERS = [ADA, BOB, User(), User(name="Ada"), User(id="u2")]
SMALL = st.tuples(st.integers(0, 5), st.sampled_from("ab"), st.sampled_from(USERS), st.sampled_from(["x", "y", ""]))


@given(st.lists(SMALL, max_size=5), st.lists(st.tuples(SMALL, st.booleans()), max_size=5))
def test_the_outcomes_are_those_of_all_explanations(
    made: list[tuple[int, str, User, str]], came: list[tuple[tuple[int, str, User, str], bool]]
) -> None:
    """Without texts, each explanation with as many pairs as possible is looked at."""
    entries = [entry(second, name, user, "", number) for number, (second, name, user, _) in enumerate(made)]
    arrivals = [
        arrival(second, name, user, "", number=number, gone=gone)
        for number, ((second, name, user, _), gone) in enumerate(came)
    ]
    every = [found for found in explanations(entries, arrivals) if len(found) == most(entries, arrivals)]
    found = match(entries, arrivals, tolerance=TOLERANCE)
    for number, one in enumerate(found.entries):
        ways = {pairs.get(number) for pairs in every}
        assert one.outcomes == {
            "missed" if way is None else "filtered" if arrivals[way].filtered else "received" for way in ways
        }
        only = next(iter(ways)) if len(ways) == 1 else None
        assert one.uid == (None if only is None else arrivals[only].uid)
    assert found.missed == len(entries) - most(entries, arrivals)


def explanations(entries: Sequence[AuditEntry], arrivals: Sequence[Arrival]) -> Iterator[dict[int, int]]:
    """All ways to give entries a change each, also fewer than possible."""

    def go_on(number: int, pairs: dict[int, int]) -> Iterator[dict[int, int]]:
        if number == len(entries):
            yield pairs
            return
        yield from go_on(number + 1, pairs)
        one = entries[number]
        for position, other in enumerate(arrivals):
            fits = one.name == other.name and abs(one.second - other.second) <= TOLERANCE
            if fits and may_be_by_same_user(one, other) and position not in pairs.values():
                yield from go_on(number + 1, {**pairs, number: position})

    return go_on(0, {})


def most(entries: Sequence[AuditEntry], arrivals: Sequence[Arrival]) -> int:
    return max(map(len, explanations(entries, arrivals)))


@dataclass(frozen=True)
class Happened:
    """A change, and what became of its webhook."""

    second: int
    name: str
    user: User
    text: str
    fate: Outcome
    late: int  # seconds that the webhook's time is after the entry's
    knows: tuple[bool, bool, bool]  # which fields of the user the log has
    other_words: bool  # whether the webhook has another text than the log


HISTORIES = st.lists(
    st.builds(
        Happened,
        second=st.integers(1000, 1020),
        name=st.sampled_from(["gate", "config"]),
        user=st.sampled_from([ADA, BOB]),
        text=st.sampled_from(["Created Gate", "Updated Gate"]),
        fate=st.sampled_from(["received", "received", "filtered", "missed"]),
        late=st.integers(-1, 1),
        knows=st.tuples(st.booleans(), st.booleans(), st.booleans()),
        other_words=st.booleans(),
    ),
    max_size=12,
)


@given(HISTORIES, st.integers(-1, 1), st.randoms(use_true_random=False))
def test_a_report_is_right_or_says_that_it_can_not_be_told(
    history: list[Happened], offset: int, chance: object
) -> None:
    """Twins, losses, clocks that differ by up to a second, users of whom little is known, other words, any order.

    What really became of a webhook is always among the outcomes. So a change that is lost is never said to be received.
    """
    entries = [
        entry(
            one.second,
            one.name,
            User(*(field if known else None for field, known in zip(one.user, one.knows, strict=True))),
            one.text,
            number,
        )
        for number, one in enumerate(history)
    ]
    came = [
        arrival(
            one.second + one.late + offset,
            one.name,
            one.user,
            f"Description: {number}" if one.other_words else one.text,
            number=number,
            gone=one.fate == "filtered",
        )
        for number, one in enumerate(history)
        if one.fate != "missed"
    ]
    chance.shuffle(came)  # type: ignore[attr-defined]
    found = match(entries, came, tolerance=TOLERANCE)
    for number, (one, told) in enumerate(zip(history, found.entries, strict=True)):
        assert one.fate in told.outcomes
        if told.uid is not None:
            assert told.uid == f"{number:032x}"
    assert found.missed == sum(one.fate == "missed" for one in history)
