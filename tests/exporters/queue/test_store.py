"""What the database is told and asked: each question by an index, each deletion bounded, each read of one moment."""

import contextlib
import re
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statsig_otel.exporters.consumer import Batch, Invalid, Receipt
from statsig_otel.exporters.queue import checks, queries, records, schema, store
from statsig_otel.exporters.queue.errors import DamagedError
from statsig_otel.exporters.queue.store import Appended, DeadLetter
from statsig_otel.exporters.routing import Route
from tests.exporters.queue.helpers import batch, numbers_of, reading

BIG = 1 << 30


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(schema.connect(tmp_path / "queue.db")) as made:
        yield made


def test_no_parameter_has_a_number() -> None:
    """Python 3.12 warns of `?1` with a sequence, which is an error where warnings are errors."""
    modules = list(Path(store.__file__).parent.rglob("*.py"))
    assert len(modules) > 10
    assert [module.name for module in modules if re.search(r"\?\d", module.read_text())] == []


def entry(made: Batch, route: int = 1, window_ms: int = 10) -> store.PendingBatch:
    found = store.PendingBatch(made, Route(window=window_ms / 1000), route_id=route)
    assert found.window_ms == window_ms
    return found


def append_batch(
    connection: sqlite3.Connection, made: Batch, *, route: int = 1, now_ms: int = 5, window_ms: int = 10
) -> Appended:
    (appended,) = store.append_batches(connection, [entry(made, route, window_ms)], now_ms=now_ms)
    return appended


def append(
    connection: sqlite3.Connection, route: int, *numbers: int, now_ms: int = 0, window_ms: int = 0, size: int = 20
) -> Receipt:
    made = batch(*numbers, size=size)
    appended = append_batch(connection, made, route=route, now_ms=now_ms, window_ms=window_ms)
    store.add_waiting(connection, queries.routes(connection)[route][1], appended.records, appended.size)
    return appended.receipt


def read(connection: sqlite3.Connection, *routes: int, after: int = 0, count: int = 1000, size: int = BIG) -> list[int]:
    return numbers_of(queries.read_records(connection, routes, after=after, count=count, size=size))


def test_an_exporter_is_known_by_its_name_and_a_route_by_its_receiver_and_set(connection: sqlite3.Connection) -> None:
    a, b = store.ensure_exporter(connection, "a"), store.ensure_exporter(connection, "b")
    assert a != b
    assert store.ensure_exporter(connection, "a") == a
    assert store.ensure_route(connection, [a, b]) == store.ensure_route(connection, [b, a, b])
    routes = {store.ensure_route(connection, who, of) for who in ([a], [b], [a, b], []) for of in ("", "x", "y")}
    assert len(routes) == 12
    assert queries.routes_of(connection, 99) == []
    assert len(queries.routes_of(connection, a)) == 6


def test_the_number_of_an_exporter_that_was_removed_is_not_given_to_another(connection: sqlite3.Connection) -> None:
    """Its routes still name it, and their records are not for a newcomer."""
    route = store.ensure_route(connection, [first := store.ensure_exporter(connection, "a")])
    append(connection, route, 1)
    store.remove_exporter(connection, "a")
    second = store.ensure_exporter(connection, "a", from_oldest=True, receivers=["statsig"])
    assert second != first
    assert queries.routes_of(connection, second) == []


def test_a_receipt_counts_changes_and_not_records(connection: sqlite3.Connection) -> None:
    made = batch(1, 2, 1, 3, records=4)
    appended = append_batch(connection, made)
    assert appended == Appended(Receipt(3, 1), records=12, size=12 * 20, bodies_left_out=0)


def test_invalid_items_and_bodies_are_kept_as_they_came(connection: sqlite3.Connection) -> None:
    made = Batch("statsig/eu", (), (Invalid(b"\xff\0", "no name"), Invalid(b"", "no JSON", whole_body=True)))
    append_batch(connection, made)
    rows = connection.execute("SELECT at, kind, owner, reason, content, uid, count FROM dead_letters").fetchall()
    assert rows == [
        (5, "item", "statsig/eu", "no name", b"\xff\0", None, 1),
        (5, "body", "statsig/eu", "no JSON", b"", None, 1),
    ]


def test_whole_bodies_are_kept_up_to_a_number_and_a_size(
    connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Statsig's format changes every webhook brings one; items are not bounded."""
    monkeypatch.setattr(store, "MOST_BODIES", 3)
    monkeypatch.setattr(store, "MOST_BODY_BYTES", 100)

    def add(size: int, *, whole_body: bool = True) -> int:
        made = Batch("statsig", (), (Invalid(bytes(size), "no JSON", whole_body=whole_body),))
        return append_batch(connection, made).bodies_left_out

    assert [add(50), add(51), add(50), add(1)] == [0, 1, 0, 1]
    connection.execute("DELETE FROM dead_letters")
    assert [add(1), add(1), add(1), add(1)] == [0, 0, 0, 1]
    assert [add(90, whole_body=False) for _ in range(4)] == [0] * 4
    assert connection.execute("SELECT count(*) FROM dead_letters").fetchone() == (7,)


BATCHES = st.lists(
    st.builds(
        batch,
        st.integers(0, 60),
        receiver=st.sampled_from(["statsig", "statsig/eu"]),
        records=st.integers(1, 3),
        invalid=st.integers(0, 2),
    ),
    max_size=40,
)
"""Of one change each, as most webhooks are."""


@given(
    seen=BATCHES,
    made=st.one_of(BATCHES, st.just([batch(*range(100)), batch(*range(90, 110)), batch(200)])),
    data=st.data(),
)
def test_batches_that_are_stored_at_once_are_stored_as_one_after_the_other(
    seen: list[Batch], made: list[Batch], data: st.DataObject
) -> None:
    windows = data.draw(st.sampled_from([(10,), (10, 1000), (0,), (0, 10)]))
    entries = [entry(one, 1 + number % 2, windows[number % len(windows)]) for number, one in enumerate(made)]
    found = []
    for at_once in (True, False):
        with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
            for script in schema._MIGRATIONS:
                connection.executescript(script)
            for number, one in enumerate(seen):
                append_batch(connection, one, now_ms=number)
            if at_once:
                stored = store.append_batches(connection, entries, now_ms=30)
            else:
                stored = [store.append_batches(connection, [one], now_ms=30)[0] for one in entries]
            tables = [
                connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
                for table in ("records", "seen", "dead_letters")
            ]
            found.append((stored, tables))
    assert found[0] == found[1]


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 100])
def test_a_few_statements_store_many_new_changes(connection: sqlite3.Connection, count: int) -> None:
    """The interpreter's lock changes hands for every one, and other threads want it."""
    statements: list[str] = []
    connection.set_trace_callback(statements.append)
    entries = [entry(batch(number)) for number in range(count)]
    store.append_batches(connection, entries, now_ms=5)
    assert len(statements) <= 4 + 2 * (count // 32 + 5)
    assert connection.execute("SELECT count(*) FROM records").fetchone() == (count,)


@pytest.mark.parametrize(
    ("at", "duplicate"),
    [(0, 1), (1, 1), (999, 1), (1000, 0), (1001, 0), (10**15, 0), (-1, 1), (-(10**12), 1)],
)
def test_a_change_is_a_duplicate_within_the_window_from_its_first_sight(
    connection: sqlite3.Connection, at: int, duplicate: int
) -> None:
    now = 1_700_000_000_000
    route = store.ensure_route(connection, [])
    append(connection, route, 7, now_ms=now, window_ms=1000)
    assert append(connection, route, 7, now_ms=now + at, window_ms=1000).duplicates == duplicate


def test_the_window_does_not_grow_with_the_duplicates(connection: sqlite3.Connection) -> None:
    route = store.ensure_route(connection, [])
    receipts = [append(connection, route, 7, now_ms=now, window_ms=10) for now in (0, 6, 9, 10, 15, 19, 20)]
    assert [receipt.accepted for receipt in receipts] == [1, 0, 0, 1, 0, 0, 1]


def test_what_was_seen_is_forgotten_in_bounded_steps(connection: sqlite3.Connection) -> None:
    route = store.ensure_route(connection, [])
    connection.execute("BEGIN")
    append(connection, route, *range(12_000), now_ms=1, window_ms=10)
    append(connection, route, *range(20_000, 20_003), now_ms=5, window_ms=10)
    assert [store.forget_seen(connection, 5) for _ in range(4)] == [5000, 5000, 2000, 0]
    assert connection.execute("SELECT count(*) FROM seen").fetchone() == (3,)


def test_what_all_are_done_with_is_deleted_in_bounded_steps(connection: sqlite3.Connection) -> None:
    fast, slow = store.ensure_exporter(connection, "fast"), store.ensure_exporter(connection, "slow")
    route = store.ensure_route(connection, [fast, slow])
    connection.execute("BEGIN")
    append(connection, route, *range(1, 12_001))
    store.advance(connection, fast, cursor=12_000, records=12_000, size=0)
    assert store.delete_done(connection) == 0, "the slow one has read nothing"
    store.advance(connection, slow, cursor=11_990, records=11_990, size=0)
    assert [store.delete_done(connection) for _ in range(4)] == [5000, 5000, 1990, 0]
    assert read(connection, route) == list(range(11_991, 12_001))


def test_an_exporter_holds_only_what_is_for_it(connection: sqlite3.Connection) -> None:
    a, b = store.ensure_exporter(connection, "a"), store.ensure_exporter(connection, "b")
    only_a, both = store.ensure_route(connection, [a]), store.ensure_route(connection, [a, b])
    append(connection, only_a, 1)
    append(connection, both, 2)
    append(connection, only_a, 3)
    store.advance(connection, a, cursor=3, records=3, size=0)
    assert store.delete_done(connection) == 2
    assert read(connection, only_a, both) == [2]


def test_a_removed_exporter_frees_what_it_held(connection: sqlite3.Connection) -> None:
    a, b = store.ensure_exporter(connection, "a"), store.ensure_exporter(connection, "b")
    both, only_b = store.ensure_route(connection, [a, b]), store.ensure_route(connection, [b])
    append(connection, both, 1)
    append(connection, only_b, 2)
    append(connection, both, 3)
    store.advance(connection, a, cursor=1, records=1, size=20)
    gone = store.remove_exporter(connection, "b")
    assert gone is not None
    assert (gone.name, gone.waiting, gone.bytes) == ("b", 3, 60)
    assert store.remove_exporter(connection, "b") is None
    assert store.delete_done(connection) == 2
    assert read(connection, both, only_b) == [3]


def stored_seqs(connection: sqlite3.Connection) -> list[int]:
    return [seq for (seq,) in connection.execute("SELECT seq FROM records ORDER BY seq")]


def test_a_seq_is_never_used_twice(connection: sqlite3.Connection) -> None:
    route = store.ensure_route(connection, [])
    append(connection, route, 1, 2)
    store.delete_done(connection)
    assert (queries.last_seq(connection), stored_seqs(connection)) == (2, [])
    append(connection, route, 3)
    assert (queries.last_seq(connection), stored_seqs(connection)) == (3, [3])


def test_records_of_several_routes_come_in_the_order_in_which_they_were_stored(connection: sqlite3.Connection) -> None:
    routes = [store.ensure_route(connection, [number]) for number in (1, 2, 3)]
    for number in range(1, 31):
        append(connection, routes[number * 7 % 3], number)
    assert read(connection, *routes) == list(range(1, 31))
    assert read(connection, *routes, after=11, count=5) == [12, 13, 14, 15, 16]
    assert read(connection, routes[0], after=11, count=3) == [12, 15, 18]
    assert read(connection) == []


def test_a_read_holds_at_most_so_many_bytes_or_one_record(connection: sqlite3.Connection) -> None:
    route = store.ensure_route(connection, [])
    append(connection, route, *range(1, 10), size=100)
    assert read(connection, route, size=250) == [1, 2]
    assert read(connection, route, size=300) == [1, 2, 3]
    assert read(connection, route, size=99) == [1]
    assert read(connection, route, size=0, after=4) == [5]


def test_a_read_of_several_routes_is_of_one_moment(connection: sqlite3.Connection, tmp_path: Path) -> None:
    """A commit between two routes' reads must not show the later record without the earlier one."""
    first, second = store.ensure_route(connection, [1]), store.ensure_route(connection, [1, 2])
    with reading(tmp_path / "queue.db") as reader:
        selects = 0

        def commit_in_between(statement: str) -> None:
            nonlocal selects
            selects += "FROM records" in statement
            if selects == 2:
                append(connection, first, 1)
                append(connection, second, 2)
                selects += 1

        reader.set_trace_callback(commit_in_between)
        assert read(reader, first, second) == []
        assert selects == 3
        reader.set_trace_callback(None)
        assert not reader.in_transaction
        assert read(reader, first, second) == [1, 2]


def test_a_read_inside_a_transaction_sees_what_that_wrote(connection: sqlite3.Connection) -> None:
    route = store.ensure_route(connection, [])
    connection.execute("BEGIN IMMEDIATE")
    append(connection, route, 1)
    assert read(connection, route) == [1]
    assert connection.in_transaction
    connection.execute("ROLLBACK")
    assert read(connection, route) == []


@pytest.mark.parametrize("change", ["payload = CAST('2.1' AS BLOB)", "uid = zeroblob(16)", "checksum = checksum + 1"])
def test_a_record_that_changed_is_not_intact(connection: sqlite3.Connection, change: str) -> None:
    route = store.ensure_route(connection, [])
    append(connection, route, 1, 2, 3)
    connection.execute(f"UPDATE records SET {change} WHERE seq = 2")
    found = queries.read_records(connection, [route], after=0, count=10, size=BIG)
    assert [(record.seq, record.intact) for record in found] == [(1, True), (2, False), (3, True)]


@pytest.mark.parametrize("value", ["NULL", "7", "1.5", "'text'", "CAST(X'ff80' AS TEXT)"])
@pytest.mark.parametrize("column", ["payload", "uid", "checksum"])
def test_a_value_of_another_type_hides_no_other_record(connection: sqlite3.Connection, column: str, value: str) -> None:
    route = store.ensure_route(connection, [])
    append(connection, route, 1, 2, 3)
    connection.execute("PRAGMA ignore_check_constraints = ON")
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute("UPDATE sqlite_master SET sql = replace(sql, 'NOT NULL', '') WHERE name = 'records'")
    connection.execute("PRAGMA writable_schema = RESET")
    connection.execute(f"UPDATE records SET {column} = {value} WHERE seq = 2")
    found = queries.read_records(connection, [route], after=0, count=10, size=BIG)
    assert [(record.seq, record.intact) for record in found] == [(1, True), (2, False), (3, True)]
    assert {type(value) for record in found for value in (record.payload, record.uid)} == {bytes}


def test_what_is_waiting_is_counted_down_to_nothing(connection: sqlite3.Connection) -> None:
    number = store.ensure_exporter(connection, "a")
    append(connection, store.ensure_route(connection, [number]), 1, 2, 3)
    store.advance(connection, number, cursor=1, records=1, size=20)
    assert store.cursor_and_waiting(connection, number)[:2] == (1, 2)  # type: ignore[index]
    store.advance(connection, number, cursor=3, records=2, size=7)
    (state,) = queries.exporter_states(connection)
    assert (state.cursor, state.waiting, state.bytes) == (3, 0, 0)
    assert store.cursor_and_waiting(connection, 99) is None


STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=6)
"""Records that are stored, or ticked off."""


@given(before=STEPS, after=STEPS, column=st.sampled_from(["waiting", "bytes", "both"]), bit=st.integers(0, 40))
def test_a_count_of_which_a_bit_was_flipped_is_set_right_whatever_happened_since(
    before: list[tuple[bool, int]], after: list[tuple[bool, int]], column: str, bit: int
) -> None:
    sizes: list[int] = []  # of what waits for the first one
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        for script in schema._MIGRATIONS:
            connection.executescript(script)
        a, b = store.ensure_exporter(connection, "a"), store.ensure_exporter(connection, "b")
        routes = [store.ensure_route(connection, of) for of in ([a, b], [a], [b])]

        def do(steps: list[tuple[bool, int]]) -> None:
            for stores, count in steps:
                if stores:
                    append(connection, routes[count % 3], *range(count), size=10 + count)
                    sizes.extend([10 + count] * count if count % 3 < 2 else [])
                elif done := queries.read_records(
                    connection, routes[:2], after=queries.exporter_states(connection)[0].cursor, count=count, size=BIG
                ):
                    size = sum(sizes[: len(done)])
                    store.advance(connection, a, cursor=done[-1].seq, records=len(done), size=size)
                    del sizes[: len(done)]

        do(before)
        assert queries.exporter_states(connection)[0].is_sound
        (value,) = connection.execute(f"SELECT {column} FROM exporters WHERE id = ?", (a,)).fetchone()
        connection.execute(f"UPDATE exporters SET {column} = ? WHERE id = ?", (value ^ 1 << bit, a))
        do(after)
        checks.check_database(connection)
        state, other = queries.exporter_states(connection)
        assert (state.waiting, state.bytes, state.is_sound) == (len(sizes), sum(sizes), True)
        assert other.is_sound


def test_a_route_or_a_place_that_is_no_number_is_damage(connection: sqlite3.Connection) -> None:
    number = store.ensure_exporter(connection, "a")
    route = store.ensure_route(connection, [number])
    connection.execute("UPDATE routes SET exporters = '1,x' WHERE id = ?", (route,))
    with pytest.raises(DamagedError):
        queries.routes_of(connection, number)
    with pytest.raises(DamagedError):
        store.delete_done(connection)
    connection.execute("UPDATE exporters SET waiting = 'many'")
    with pytest.raises(DamagedError):
        queries.exporter_states(connection)


def test_a_dead_letter_is_kept_whole(connection: sqlite3.Connection) -> None:
    store.add_dead_letter(connection, DeadLetter("batch", "otlp", "3 were refused", b"\0\x01", None, 4, 3), 9)
    store.add_dead_letter(connection, DeadLetter("record", "otlp", "no", b"\0", b"\x07" * 16, 1), 10)
    rows = connection.execute(
        "SELECT at, kind, owner, reason, attempts, uid, count, content FROM dead_letters"
    ).fetchall()
    assert rows == [
        (9, "batch", "otlp", "3 were refused", 4, None, 3, b"\0\x01"),
        (10, "record", "otlp", "no", 1, b"\x07" * 16, 1, b"\0"),
    ]


def plans(connection: sqlite3.Connection, statements: list[str]) -> list[str]:
    """How the engine would go about statements, as far as they are not about transactions."""
    found: list[str] = []
    for statement in statements:
        if statement.split(maxsplit=1)[0] in ("SELECT", "INSERT", "UPDATE", "DELETE"):
            found += [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}")]
    return found


def test_no_statement_goes_through_a_whole_table_of_records(connection: sqlite3.Connection) -> None:
    a, b = store.ensure_exporter(connection, "a"), store.ensure_exporter(connection, "b")
    routes = [store.ensure_route(connection, who) for who in ([a], [a, b])]
    said: list[str] = []
    connection.set_trace_callback(said.append)
    checks.check_database(connection)
    queries.exporter_states(connection)
    append(connection, routes[0], 1, 2, now_ms=1, window_ms=10)
    read(connection, routes[0])
    read(connection, *routes, after=1)
    store.advance(connection, a, cursor=2, records=2, size=40)
    store.delete_done(connection)
    store.forget_seen(connection, 1)
    store.ensure_exporter(connection, "c")
    connection.set_trace_callback(None)
    found = plans(connection, said)
    assert [plan for plan in found if plan.startswith("SEARCH records USING INDEX records_by_route")], found
    for plan in found:
        # Both ends are read by walking an index from its end; what is sorted or gone through whole is small.
        assert "TEMP B-TREE" not in plan, plan
        # SQLite 3.53 calls a statement's own rows a VALUES CLAUSE, older ones CONSTANT ROWS.
        if plan.startswith("SCAN") and not plan.endswith(("CONSTANT ROWS", "VALUES CLAUSE")):
            assert plan.split()[1] in ("exporters", "routes", "sqlite_sequence") or is_walked_from_an_end(plan), plan


def is_walked_from_an_end(plan: str) -> bool:
    return plan in ("SCAN records", "SCAN dead_letters", "SCAN seen USING COVERING INDEX seen_by_time")


@given(st.binary(max_size=5000), st.integers(0, 0xFFFFFFFF))
def test_the_quick_checksum_is_that_of_zlib(data: bytes, before: int) -> None:
    assert records.quick_crc32(data, before) == zlib.crc32(data, before)


def test_a_quick_checksum_that_is_wrong_damages_nothing(
    connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An instruction set that a library gets wrong must not cost a record: zlib has the last word."""
    route = store.ensure_route(connection, [store.ensure_exporter(connection, "a")])
    append(connection, route, *range(5))
    connection.execute("UPDATE records SET checksum = checksum + 1 WHERE seq = 2")
    for wrong in (lambda data, value=0: zlib.crc32(data, value) ^ 1, lambda *_: 0):
        monkeypatch.setattr(records, "quick_crc32", wrong)
        found = queries.read_records(connection, [route], after=0, count=9, size=BIG)
        assert [record.intact for record in found] == [True, False, True, True, True]
        assert numbers_of(found) == [*range(5)]


def test_the_newest_record_is_found_from_the_end_over_all_routes(connection: sqlite3.Connection) -> None:
    exporters = [store.ensure_exporter(connection, name) for name in "ab"]
    mine = [store.ensure_route(connection, exporters[:1]), store.ensure_route(connection, exporters)]
    for number in range(60):
        append(connection, [*mine, store.ensure_route(connection, exporters[1:])][number % 3], number)
    connection.execute("UPDATE records SET checksum = checksum + 1 WHERE seq = 59")
    asked: list[int] = []

    def newest(up_to: int, *tried: int) -> tuple[int, ...]:
        def passed_over(seq: int) -> bool:
            asked.append(seq)
            return seq in tried

        return queries.newest_record(connection, mine, after=10, up_to=up_to, passed_over=passed_over).seqs

    assert newest(99) == (58,), "60 is of another route, and 59 is damaged"
    assert newest(58, 58, 56) == (55,)
    assert asked == [59, 58, 58, 56, 55], "nothing is read of those before"
    assert newest(11, 11) == ()


def test_without_the_library_zlib_does_it() -> None:
    """There is no wheel of it for every machine."""
    script = (
        "import sys, zlib\nsys.modules['isal'] = None\n"
        "from statsig_otel.exporters.queue import records\nassert records.quick_crc32 is zlib.crc32"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
