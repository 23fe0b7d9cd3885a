"""`statsig-otel queue`: shows the records that wait for each exporter, and unblocks or removes exporters."""

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from statsig_otel._telemetry import FAILED_STATES, NOT_CONFIGURED
from statsig_otel.config.errors import ConfigError
from statsig_otel.exporters.queue import dead_letters, queries
from statsig_otel.exporters.queue.backup import back_up
from statsig_otel.exporters.queue.directory import QueueDirectory
from statsig_otel.exporters.terminal import pad, printable, width
from statsig_otel.exporters.wording import age, counted, rfc3339
from statsig_otel.plugin.cli.age import Age
from statsig_otel.plugin.cli.options import json_option
from statsig_otel.plugin.control.queue_access import QueueAccess
from statsig_otel.plugin.control.socket import ControlError

_F = TypeVar("_F", bound=Callable[..., Any])

_BLOCKED: Final = 3
"""The exit code if an exporter is blocked."""

_NOT_RUNNING: Final = "not running"
_NUMBERS: Final = frozenset({"WAITING", "BYTES", "ATTEMPTS", "ID", "RECORDS"})


def _remember(context: click.Context, parameter: click.Parameter, value: str | tuple[str, ...] | None) -> None:
    """Keep the value of an option, which may stand before or after a subcommand, for `named_locations`."""
    found: Path | tuple[str, ...] | None = None
    if not isinstance(value, str):
        found = value
    elif not value:
        raise click.BadParameter("It is empty. Is a variable not set?", context, parameter)
    elif value.startswith("~"):
        raise click.BadParameter("~ is replaced by the shell, if no quotation marks are around it.", context, parameter)
    else:
        found = Path(value)
        with suppress(FileNotFoundError):  # the working directory is gone
            found = found.absolute()  # messages show where a relative path leads to
    if found:
        context.meta[f"{__name__}.{parameter.name}"] = found


def location_options(function: _F) -> _F:
    """Add `--directory` and `--config`, which say where the queue is, before or after a subcommand."""
    directory = click.option(
        "--directory",
        type=click.Path(),
        expose_value=False,
        callback=_remember,
        help="The queue's directory.",
    )
    config = click.option(
        "--config",
        type=click.Path(),
        multiple=True,
        metavar="LOCATION",
        expose_value=False,
        callback=_remember,
        help="The service's configuration, which names the directory; as for `statsig-otel run`.",
    )
    return directory(config(function))


def named_locations() -> tuple[Path | None, tuple[str, ...]]:
    """The values of `--directory` and `--config`."""
    meta = click.get_current_context().meta
    return meta.get(f"{__name__}.directory"), meta.get(f"{__name__}.config", ())


@contextmanager
def queue_access() -> Iterator[QueueAccess]:
    """The queue that the options name. An error ends the command with exit code 1."""
    directory, locations = named_locations()
    try:
        yield QueueAccess(directory=directory, locations=locations, environ=os.environ)
    except ConfigError as error:
        raise click.ClickException(
            f"the configuration has errors\n{error}\nhint: --directory DIR, without --config, needs no configuration"
        ) from error
    except ControlError as error:
        raise click.ClickException(str(error)) from error
    except UnicodeEncodeError as error:
        raise click.ClickException(f"{error.object!r} is not valid Unicode, so no exporter has this name") from error


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print aligned columns, numbers to the right. Unprintable characters are escaped."""
    shown = [list(head), *([printable(cell) or "-" for cell in row] for row in rows)]
    widths = [max(map(width, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        cells = [
            " " * (cells - width(text)) + text if name in _NUMBERS else pad(text, cells)
            for name, text, cells in zip(head, row, widths, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


@dataclass(frozen=True, slots=True)
class _Exporter:
    """One row. `configured` is None if there is neither a running service nor a configuration file."""

    name: str
    state: str
    configured: bool | None
    waiting: int
    bytes: int
    oldest_observed_at: str | None
    oldest_age_seconds: int | None
    attempts: int | None
    last_error: str | None


@click.group("queue", invoke_without_command=True)
@location_options
@json_option
@click.pass_context
def command(context: click.Context, *, as_json: bool) -> None:
    """Show the records that wait for each exporter, and the state of its delivery.

    Works whether or not the service runs. Without --directory and --config, the queue is searched for where a service
    without a configuration file puts it: in $STATE_DIRECTORY, else in /var/lib/statsig-otel if that is writable, else
    in the user's state directory.

    BYTES is the size of the records themselves; a record that waits for several exporters is stored once. OLDEST is the
    time at which the webhook of the oldest waiting record arrived.

    \b
    Exit codes:
      0  done
      1  refused, or the queue or exporter does not exist
      2  an option is wrong
      3  shown, and an exporter is blocked
    """
    if context.invoked_subcommand is not None:
        if as_json:
            raise click.UsageError("--json applies to `statsig-otel queue` without a subcommand")
        return
    with queue_access() as access:
        answer = access.ask("queue")
        with access.reading() as connection:
            exporters = _exporters(connection, answer, access.configured)
            dead, _ = dead_letters.count(connection, dead_letters.Selection())
    if as_json:
        found = {
            "directory": str(access.directory),
            "running": answer is not None,
            "pid": answer["pid"] if answer else None,
            "exporters": [asdict(exporter) for exporter in exporters],
            "receivers": answer["receivers"] if answer else {},
            "dead_letters": dead,
        }
        click.echo(json.dumps(found, indent=2))
    else:
        _show(access.directory, answer, exporters, dead)
    if any(exporter.state == "blocked" for exporter in exporters):
        context.exit(_BLOCKED)


@command.command(short_help="Let an exporter try again now.")
@click.argument("exporter")
@location_options
def resume(exporter: str) -> None:
    """Let EXPORTER try again now if it is blocked or waits for its next attempt."""
    with queue_access() as access, access.changing() as perform:
        answer = perform("queue resume", exporter=exporter)
    if answer["state"] in FAILED_STATES:
        click.echo(f"{exporter} was {answer['state']}; it tries again now. `statsig-otel queue` shows the result.")
    else:
        click.echo(f"{exporter} is {answer['state']}: there was nothing to resume.")


@command.command(short_help="Turn the first waiting record into a dead letter.")
@click.argument("exporter")
@click.option("--count", type=click.IntRange(min=1), help="How many records to skip; by default one.")
@click.option(
    "--older-than",
    type=Age(),
    help="Skip records up to the first one whose own timestamp is younger than this, such as 7d or 12h.",
)
@location_options
def skip(exporter: str, *, count: int | None, older_than: float | None) -> None:
    """Turn the first record that waits for EXPORTER into a dead letter, and continue with the next one.

    A dead letter can be shown, and replayed later. A running service skips records only while the exporter is
    blocked, refused or retrying. With both --count and --older-than a record has to meet both.
    """
    with queue_access() as access, access.changing() as perform:
        answer = perform("queue skip", exporter=exporter, count=count, older_than=older_than)
    skipped = answer["skipped"]
    if skipped == 1:
        what = f"The first record that waits for {exporter} becomes a dead letter"
    else:
        what = (
            f"Of the first {skipped} records that wait for {exporter}, all that were not delivered become dead letters"
        )
    click.echo(f"{what}. Still waiting: {counted(answer['waiting'], 'record')}.")


@command.command(short_help="Remove an exporter that left the configuration.")
@click.argument("exporter")
@click.option("--yes", is_flag=True, help="Confirm that waiting records are never sent to it.")
@location_options
def remove(exporter: str, *, yes: bool) -> None:
    """Remove EXPORTER, which has left the configuration, from the queue.

    Records that wait for it are never sent to it, and those that wait for no other exporter are deleted. If there are
    any, --yes is required. The exporter's dead letters stay.
    """
    with queue_access() as access, access.changing() as perform:
        answer = perform("queue remove", exporter=exporter, yes=yes)
    records, size = counted(answer["records"], "record"), counted(answer["bytes"], "byte")
    click.echo(f"{exporter} is removed, and with it {records} of {size} that waited for it.")


@command.command(short_help="Copy the queue to a file.")
@click.argument("file", type=click.Path(path_type=Path))
@location_options
def backup(file: Path) -> None:
    """Copy the queue to FILE, as of one moment. FILE must not exist yet.

    Webhooks and deliveries go on meanwhile. FILE contains everything that waits, the dead letters and the uids that
    were seen. To use it, stop the service, and put it as queue.db into an empty directory. What was delivered after the
    copy was made is delivered again, with the same uids; what was accepted after it is not in it.
    """
    with queue_access() as access, access.reading() as connection:
        if QueueDirectory(access.directory).has(file):
            raise ControlError(f"{file} would count as a file of the queue itself: name one in another directory")
        try:
            size = back_up(connection, file)
        except FileExistsError as error:
            raise ControlError(f"{file} exists already: name a new file") from error
        except OSError as error:
            raise ControlError(f"{file} can't be written: {error.strerror}") from error
        except sqlite3.Error as error:
            raise ControlError(f"the queue can't be copied to {file}: {error}") from error
    click.echo(f"The queue is copied to {printable(str(file))}: {counted(size, 'byte')}.")


def _exporters(
    connection: sqlite3.Connection, answer: dict[str, Any] | None, configured: Sequence[str] | None
) -> list[_Exporter]:
    senders = answer["exporters"] if answer else {}
    known = list(senders) if answer else configured
    rows = []
    for state in queries.exporter_states(connection):
        sender = senders.get(state.name, {})
        observed_ns = queries.oldest_observed_ns(connection, state)
        rows.append(
            _Exporter(
                name=state.name,
                state=sender.get("state", NOT_CONFIGURED if answer else _NOT_RUNNING),
                configured=None if known is None else state.name in known,
                waiting=state.waiting,
                bytes=state.bytes,
                oldest_observed_at=None if observed_ns is None else rfc3339(observed_ns // 10**9),
                oldest_age_seconds=None if observed_ns is None else max(time.time_ns() - observed_ns, 0) // 10**9,
                attempts=sender.get("attempts"),
                last_error=sender.get("last_error") or None,
            )
        )
    return rows


def _show(directory: Path, answer: dict[str, Any] | None, exporters: Sequence[_Exporter], dead: int) -> None:
    owner = f"the running service (process {answer['pid']})" if answer else "a service that is not running"
    click.echo(f"{printable(str(directory))}: the queue of {owner}\n")
    print_table(("EXPORTER", "STATE", "WAITING", "BYTES", "OLDEST", "ATTEMPTS", "LAST ERROR"), map(_row, exporters))
    click.echo(f"\nDead letters: {dead}" + (" (statsig-otel dead-letters list)" if dead else ""))
    for name, receiver in (answer["receivers"] if answer else {}).items():
        if receiver["secrets"] > 1:
            last = receiver["last_secret"]
            told = f"verified with secret {last} of {receiver['secrets']}" if last else "none since the last change"
            click.echo(f"Last webhook of {printable(name)}: {told}")


def _row(one: _Exporter) -> tuple[str, ...]:
    state = one.state
    if one.configured is False and state != NOT_CONFIGURED:
        state = f"{state}, {NOT_CONFIGURED}"
    oldest = ""
    if one.oldest_age_seconds is not None:
        oldest = f"{age(one.oldest_age_seconds)} ago, {one.oldest_observed_at}"
    attempts = "" if one.attempts is None else str(one.attempts)
    return (one.name, state, str(one.waiting), str(one.bytes), oldest, attempts, one.last_error or "")
