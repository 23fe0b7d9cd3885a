"""Jobs of the writer: functions that share a transaction. What one of them raises undoes only that one."""

import itertools
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final, Generic, NamedTuple, TypeVar

_T = TypeVar("_T")
_I = TypeVar("_I")
Work = Callable[[sqlite3.Connection], _T]

_JOBS_OWN: Final = (
    sqlite3.DataError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.NotSupportedError,
    sqlite3.ProgrammingError,
)
"""Errors that only concern the job that raised them; after any other error of the database nothing is certain."""


@dataclass(frozen=True, slots=True, eq=False)
class Bulk(Generic[_I, _T]):
    """Work on all items that wait together, since one statement for each would cost much more.

    Attributes:
        work: Returns a result for each item, in order. If it raises for several, it is run for each by itself.
        then: Run with the results after the commit and before any item is answered, in the writer's thread.
        answer: Run for each item: with its result and None, or with None and the error.
    """

    work: Callable[[sqlite3.Connection, Sequence[_I]], Sequence[_T]]
    then: Callable[[Sequence[_T]], None]
    answer: Callable[[_I, _T | None, Exception | None], None]


class Job(NamedTuple):
    """One item, and the work for all of its kind."""

    bulk: Bulk[Any, Any]
    item: Any


@dataclass(frozen=True, slots=True)
class BulkResult:
    """The results of jobs of one `Bulk`, or why they failed."""

    jobs: Sequence[Job]
    results: Sequence[Any]
    failure: Exception | None = None


def attempt_all(connection: sqlite3.Connection, jobs: Sequence[Job]) -> Iterator[BulkResult]:
    """Run jobs in the transaction that has begun, those of one `Bulk` together."""
    for _, together in itertools.groupby(jobs, attrgetter("bulk")):
        same = list(together)
        done = _attempt(connection, same)
        if done.failure is None or len(same) == 1:
            yield done
        else:  # one of them is to blame
            yield from (_attempt(connection, [job]) for job in same)


def _attempt(connection: sqlite3.Connection, jobs: Sequence[Job]) -> BulkResult:
    """Run jobs of one `Bulk`. What they raise undoes only them, unless it is an error of the database."""
    connection.execute("SAVEPOINT jobs")
    try:
        results = jobs[0].bulk.work(connection, [job.item for job in jobs])
    except Exception as error:
        if isinstance(error, sqlite3.Error) and not isinstance(error, _JOBS_OWN):
            raise
        connection.execute("ROLLBACK TO jobs")
        connection.execute("RELEASE jobs")
        return BulkResult(jobs, [None] * len(jobs), error)
    connection.execute("RELEASE jobs")
    return BulkResult(jobs, results)


def transact(connection: sqlite3.Connection, work: Work[_T]) -> _T:
    """Run one function in a transaction of its own."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = work(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return result
