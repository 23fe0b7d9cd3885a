"""`statsig-otel dead-letters`: lists, shows, replays and drops what could not be delivered or mapped."""

import json
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar, get_args

import click
import msgspec

from statsig_otel.exporters.exporter import Delivered
from statsig_otel.exporters.local.debug import DebugExporter, DebugSettings
from statsig_otel.exporters.queue import dead_letters
from statsig_otel.exporters.queue.dead_letters import FROM_RECEIVER, Selection, StoredDeadLetter
from statsig_otel.exporters.queue.store import DeadLetterKind
from statsig_otel.exporters.terminal import printable, shorten
from statsig_otel.exporters.wording import counted, rfc3339
from statsig_otel.plugin.cli.options import json_option
from statsig_otel.plugin.cli.queue import location_options, print_table, queue_access
from statsig_otel.plugin.control.dead_letter_content import decoded, without_content
from statsig_otel.plugin.control.queue_access import Perform

_F = TypeVar("_F", bound=Callable[..., Any])

_IDS_AT_ONCE: Final = 500
"""The most ids in one request. The length of a request and the number of SQLite's parameters are limited."""

_LISTED_AT_ONCE: Final = 1000
_MAX_ID: Final = (1 << 63) - 1
_REASON_CELLS: Final = 100


def _selection_options(function: _F) -> _F:
    """Add the arguments of `_selections`."""
    for option in (
        click.option("--all", "everything", is_flag=True, help="Select all."),
        click.option("--kind", type=click.Choice(get_args(DeadLetterKind)), help="Select one kind."),
        click.option("--receiver", metavar="NAME", help="Select the items and bodies of this receiver."),
        click.option("--exporter", metavar="NAME", help="Select what this exporter could not deliver."),
        click.argument("ids", nargs=-1, type=click.IntRange(1, _MAX_ID), metavar="[ID]..."),
    ):
        function = option(function)
    return function


def _selections(
    ids: tuple[int, ...], *, everything: bool, required: bool = True, **filters: Any
) -> Sequence[Selection]:
    """The dead letters that the arguments select. Many ids become several selections."""
    given = bool(ids) + any(value is not None for value in filters.values()) + everything
    if given > 1:
        raise click.UsageError("IDs, filters and --all exclude each other.")
    if filters["exporter"] is not None and filters["receiver"] is not None:
        raise click.UsageError("A dead letter belongs to an exporter or to a receiver, never to both.")
    if required and not given:
        raise click.UsageError("Select dead letters: IDs, --exporter, --receiver, --kind or --all.")
    unique = sorted(set(ids))
    chunks = [tuple(unique[start : start + _IDS_AT_ONCE]) for start in range(0, len(unique), _IDS_AT_ONCE)]
    return [Selection(ids=chunk) for chunk in chunks] or [Selection(**filters)]


@click.group("dead-letters")
@location_options
def command() -> None:
    """List, show, replay or drop what could not be delivered or mapped.

    \b
    There are five kinds:
      item     a verified config change that could not be mapped to a record, as it was sent
      body     a verified webhook of unknown shape, as it was sent
      record   a record that an exporter's backend refuses, or that was skipped
      batch    records that a backend accepted only in part, without saying which
      damaged  the rest of a record that was damaged on disk; it is never replayed

    Dead letters stay until one of these commands replays or drops them. The commands work whether or not the service
    runs. --directory and --config are those of `statsig-otel queue`.

    \b
    Exit codes:
      0  done
      1  nothing matched, the command was refused, or a dead letter stays
      2  an option is wrong
    """


@command.command("list", short_help="List dead letters.")
@_selection_options
@json_option
@location_options
def list_(*, as_json: bool, **selected: Any) -> None:
    """List dead letters, oldest first. Without a selection, list all."""
    selections = _selections(**selected, required=False)
    listed: set[int] = set()
    with queue_access() as access, access.reading() as connection, _json_array(as_json=as_json) as add:
        for page in _pages(connection, selections):
            listed.update(dead_letter.id for dead_letter in page)
            if as_json:
                for dead_letter in page:
                    add(without_content(dead_letter))
                continue
            print_table(("ID", "KEPT AT", "KIND", "OF", "RECORDS", "BYTES", "ATTEMPTS", "REASON"), map(_row, page))
    if not listed and selections == [Selection()]:
        click.echo("There are no dead letters.", err=True)
        return
    _exit_unless_found(selections, listed)


@command.command()
@_selection_options
@json_option
@location_options
def show(*, as_json: bool, **selected: Any) -> None:
    """Print the whole content of dead letters, with their reasons.

    In JSON, the content of an item or body is in `text`, and records are an OTLP/JSON request in `request`. Content
    that can't be decoded, and content that was damaged, is in `base64`.
    """
    selections = _selections(**selected)
    shown: set[int] = set()
    with queue_access() as access, access.reading() as connection, _json_array(as_json=as_json) as add:
        for page in _pages(connection, selections):
            for dead_letter in page:
                content = dead_letters.content(connection, dead_letter.id)
                if content is None:
                    continue  # replayed or dropped meanwhile
                shown.add(dead_letter.id)
                if as_json:
                    add({**without_content(dead_letter), **decoded(dead_letter, content)})
                else:
                    _print(dead_letter, content)
    _exit_unless_found(selections, shown)


@command.command(short_help="Try dead letters again.")
@_selection_options
@click.option("--to", metavar="EXPORTER", help="Send records to this exporter instead of their own.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome of each as JSON.")
@location_options
def replay(*, as_json: bool, to: str | None, **selected: Any) -> None:
    """Try dead letters again. Each is deleted once its content is delivered, or waits for delivery.

    A record is sent to its exporter again, or to the one that --to names: it may have another name by now. So are all
    records of a batch: those that the backend had accepted arrive a second time, with the same uid.

    An item is mapped again, with the receiver's current mapping, and goes to all exporters of its receiver. If the
    change was accepted in the meantime, the item is a duplicate and is deleted. A body is parsed again in the same way;
    those of its items that are still invalid become dead letters of their own. An item or body that is still invalid
    stays, with the new reason.

    Exporters without a sending queue receive items and bodies at once, before all others; if one of them fails, the
    dead letter stays. They need a running service. Each replay of a dead letter that stays reaches them again, with the
    same uid.

    While no service runs, --config says what is configured: nothing is replayed to an exporter that is not. A replay
    may exceed an exporter's queue_size. Damaged dead letters are not replayed.
    """
    selections = _selections(**selected)
    totals: Counter[str] = Counter()
    delivered: set[str] = set()
    with queue_access() as access, access.changing() as perform, _json_array(as_json=as_json) as add:
        for one in _replay(perform, selections, to):
            totals.update([one["outcome"]])
            totals.update({key: one[key] for key in ("records", "duplicates", "invalid")})
            delivered.update(one["delivered"])
            if as_json:
                add(one)
            elif one["outcome"] == "kept":
                click.echo(f"{one['id']} stays: {printable(one['reason'])}", err=True)
            elif one["outcome"] == "gone":
                click.echo(f"There is no dead letter {one['id']}.", err=True)
    if not as_json and totals["replayed"]:
        click.echo(_summary(totals, delivered))
    _exit_unless_found((), totals)
    if totals["kept"] or totals["gone"] or totals["invalid"]:
        sys.exit(1)


@command.command()
@_selection_options
@click.option("--yes", is_flag=True, help="Confirm that the dead letters are deleted for good.")
@click.option("--json", "as_json", is_flag=True, help="Print the ids of the dropped dead letters as JSON.")
@location_options
def drop(*, yes: bool, as_json: bool, **selected: Any) -> None:
    """Delete dead letters for good."""
    selections = _selections(**selected)
    dropped: set[int] = set()
    with queue_access() as access:
        with access.reading() as connection:
            found = [dead_letters.count(connection, selection) for selection in selections]
        count, size = sum(letters_ for letters_, _ in found), sum(bytes_ for _, bytes_ in found)
        if not count:
            if as_json:
                click.echo("[]")
            _exit_unless_found(selections, ())
        if not yes:
            raise click.ClickException(
                f"{counted(count, 'dead letter')} of {counted(size, 'byte')} would be deleted for good; "
                "each may be the only copy. Confirm with --yes."
            )
        with access.changing() as perform, _json_array(as_json=as_json) as add:
            for selection in selections:
                for page in _by_page(perform, "dead-letters drop", selection):
                    dropped.update(page["ids"])
                    for number in page["ids"] if as_json else ():
                        add(number)
    if not as_json:
        click.echo(f"Dropped: {counted(len(dropped), 'dead letter')}.")
    _exit_unless_found(selections, dropped)


def _summary(totals: Counter[str], delivered: Collection[str]) -> str:
    """The counts of a replay."""
    text = f"Replayed: {counted(totals['replayed'], 'dead letter')}, {counted(totals['records'], 'record')} to deliver."
    if delivered:
        text += f" Delivered at once: to {printable(', '.join(sorted(delivered)))}."
    if totals["duplicates"]:
        text += f" Accepted before: {counted(totals['duplicates'], 'change')}."
    if totals["invalid"]:
        text += f" Still invalid, now dead letters of their own: {counted(totals['invalid'], 'item')}."
    return text


def _replay(perform: Perform, selections: Sequence[Selection], to: str | None) -> Iterator[dict[str, Any]]:
    for selection in selections:
        missing = set(selection.ids or ())
        for page in _by_page(perform, "dead-letters replay", selection, **({} if to is None else {"to": to})):
            missing.difference_update(one["id"] for one in page["dead_letters"])
            yield from page["dead_letters"]
        for number in sorted(missing):
            nothing = {"reason": "", "records": 0, "exporters": [], "delivered": [], "duplicates": 0, "invalid": 0}
            yield {"id": number, "outcome": "gone", **nothing}


def _by_page(perform: Perform, name: str, selection: Selection, **others: str) -> Iterator[dict[str, Any]]:
    """Run a command page by page, up to the last dead letter that exists at the start: a replay may create new ones."""
    after, upto = 0, None
    while after is not None:
        page = perform(name, selection=msgspec.to_builtins(selection), after=after, upto=upto, **others)
        after, upto = page["next"], page["upto"]
        yield page


def _pages(connection: sqlite3.Connection, selections: Sequence[Selection]) -> Iterator[list[StoredDeadLetter]]:
    for selection in selections:
        after = 0
        while page := dead_letters.select(connection, selection, after=after, limit=_LISTED_AT_ONCE):
            yield page
            after = page[-1].id


def _exit_unless_found(selections: Sequence[Selection], found: Collection[object]) -> None:
    """Exit with 1 if a dead letter that was selected by its id was not found, or if none was found at all."""
    missing = sorted({number for selection in selections for number in selection.ids or ()}.difference(found))
    for number in missing:
        click.echo(f"There is no dead letter {number}.", err=True)
    if not missing and not found:
        click.echo("No dead letter matches.", err=True)
    if missing or not found:
        sys.exit(1)


@contextmanager
def _json_array(*, as_json: bool) -> Iterator[Callable[[Any], None]]:
    """Print a JSON array element by element, so that its length costs no memory.

    The array is closed even if the command fails in the middle, so that the output up to then is valid JSON.
    """
    separator = "["

    def add(element: Any) -> None:
        nonlocal separator
        click.echo(f"{separator}{json.dumps(element)}", nl=False)
        separator = ",\n"

    try:
        yield add
    finally:
        if as_json:
            click.echo("[]" if separator == "[" else "]")


def _row(dead_letter: StoredDeadLetter) -> tuple[str, ...]:
    reason = shorten(printable(dead_letter.reason), _REASON_CELLS)
    numbers = map(str, (dead_letter.count, dead_letter.size, dead_letter.attempts))
    return (str(dead_letter.id), _time(dead_letter.at_ms), dead_letter.kind, dead_letter.owner, *numbers, reason)


def _print(dead_letter: StoredDeadLetter, content: bytes) -> None:
    click.echo(
        f"Dead letter {dead_letter.id}: {dead_letter.kind} of {printable(dead_letter.owner)}, "
        f"kept at {_time(dead_letter.at_ms)}"
    )
    click.echo(f"Reason: {printable(dead_letter.reason)}")
    if dead_letter.kind in FROM_RECEIVER:
        for line in content.decode(errors="backslashreplace").split("\n"):
            click.echo(printable(line))
        click.echo()
        return
    click.echo(f"Attempts: {dead_letter.attempts}")
    if dead_letter.kind == "damaged":
        click.echo("The rest of it, which may be wrong:" if content else "Nothing is left of it.")
    printer = DebugExporter("dead-letters", DebugSettings(verbosity="detailed"), sys.stdout)
    printer.start()
    outcome = printer.send(content, dead_letter.count, 0)
    if not isinstance(outcome, Delivered):
        click.echo(f"{getattr(outcome, 'reason', outcome)}; in hex:\n{content.hex()}")
    click.echo()


def _time(milliseconds: int) -> str:
    return rfc3339(milliseconds // 1000)
