"""`statsig-otel reconcile`: finds the changes in Statsig's audit log that no webhook brought."""

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from statsig_otel.config.errors import ConfigError
from statsig_otel.config.opaque import REDACTED, reveal
from statsig_otel.exporters.queue import arrivals
from statsig_otel.exporters.terminal import printable
from statsig_otel.exporters.wording import counted, rfc3339
from statsig_otel.plugin.audit_log.client import AuditLogClient, AuditLogError
from statsig_otel.plugin.audit_log.entries import ABOUT_WEBHOOK, AuditEntry
from statsig_otel.plugin.audit_log.report import Period, Report, Verdict, report
from statsig_otel.plugin.cli.age import Moment
from statsig_otel.plugin.cli.options import json_option
from statsig_otel.plugin.cli.queue import print_table
from statsig_otel.plugin.control.queue_access import QueueAccess
from statsig_otel.plugin.control.socket import ControlError

if TYPE_CHECKING:
    from statsig_otel.plugin.settings.audit_log import AuditLogSettings

_MISSED: Final = 1
_CAN_NOT_TELL: Final = 3

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.-]")
_WORDS: Final[dict[Verdict, str]] = {
    "received": "received",
    "filtered": "filtered here",
    "missed": "missed",
    "filled_in": "filled in from the audit log",
    "ambiguous": "can't be told",
    "not_remembered": "from before it was remembered what comes",
    "unknown_type": "of types that are not known",
    "ignored_type": "of types in `ignore`",
    "not_a_change": "not config changes",
}


class _CanNotTellError(click.ClickException):
    exit_code = _CAN_NOT_TELL


@contextmanager
def _told() -> Iterator[None]:
    """End the command with its own exit code if the question can't be answered."""
    try:
        yield
    except ConfigError as error:
        raise _CanNotTellError(f"the configuration has errors\n{error}") from error
    except (ControlError, AuditLogError) as error:
        raise _CanNotTellError(str(error)) from error
    except KeyboardInterrupt as error:  # click would exit with 1
        raise _CanNotTellError("interrupted") from error


@click.command("reconcile")
@click.option(
    "--config",
    "locations",
    type=click.Path(),
    multiple=True,
    required=True,
    metavar="LOCATION",
    help="The service's configuration, with `audit_log` of a receiver; as for `statsig-otel run`.",
)
@click.option(
    "--since", type=Moment(), default="7d", show_default=True, help="Begin so long ago, or at this date and time."
)
@click.option(
    "--until",
    type=Moment(),
    help="End so long ago, or at this date and time; by default `audit_log::grace` ago.",
    metavar="MOMENT",
)
@click.option("--receiver", help="Only this receiver; by default all that have `audit_log`.")
@click.option(
    "--save",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep the log's pages in this new directory, as they came, for a report of a fault. They name people.",
)
@json_option
@click.pass_context
def command(
    context: click.Context,
    *,
    locations: tuple[str, ...],
    since: float,
    until: float | None,
    receiver: str | None,
    save: Path | None,
    as_json: bool,
) -> None:
    """Find the changes in Statsig's audit log that no webhook brought (experimental).

    Says of each config change in the log whether it was received, was dropped by the receiver's filter, or is missed;
    and what the log says about the webhook itself, such as a new signing secret. It only reads, and works whether or
    not the service runs. What came is remembered while `audit_log` of the receiver is configured.

    \b
    Exit codes:
      0  nothing is missed
      1  something is missed
      2  an option is wrong
      3  it can't be told: the configuration, the queue or the log can't be read
    """
    with _told():
        access = QueueAccess(directory=None, locations=locations, environ=os.environ)
        settings = {name: one for name, one in access.audit_logs.items() if receiver in (None, name)}
        if not settings:
            which = "no receiver" if receiver is None else f"no receiver {receiver!r}"
            raise ControlError(f"{which} with `audit_log` is in this configuration: docs/no-gaps.md says how to begin")
        pages = None if save is None else _Pages(save)
        found: dict[str, Report] = {}
        for name, log in settings.items():
            end = time.time() - log.grace if until is None else until
            if since >= end:
                raise click.UsageError("--since must be before --until, which is `audit_log::grace` ago by default")
            found[name] = _report(access, name, log, int(since), int(end), save=pages)
    if as_json:
        click.echo(json.dumps({"receivers": {name: one.to_json() for name, one in found.items()}}, indent=2))
    else:
        for name, one in found.items():
            _show(name, one)
    if any(one.missed for one in found.values()):
        context.exit(_MISSED)


def _report(
    access: QueueAccess, name: str, settings: "AuditLogSettings", begin: int, end: int, *, save: "_Pages | None"
) -> Report:
    """The report of one receiver.

    Raises:
        ControlError: What came is not remembered, or can't be read; or the pages can't be kept.
        AuditLogError: The log can't be read.
    """
    tolerance, key = settings.tolerance, reveal(settings.api_key)
    with access.reading() as connection:
        remembered = arrivals.read(connection, name, begin - tolerance, end + tolerance)
    if remembered is None:
        raise ControlError(
            f"{name}: it is not remembered what came. That begins when the service starts with `audit_log` configured"
        )
    try:
        client = AuditLogClient(
            settings.endpoint, key, tls=settings.tls, timeout=settings.timeout, wait=_wait, failed=_say_failed
        )
    except (OSError, ValueError) as error:
        raise AuditLogError(f"receivers::{name}::audit_log: {error}") from error
    try:
        page = client.read(begin, end, lambda body: save.keep(name, body, key) if save else None)
    finally:
        client.close()
    since = max(remembered.since, int(time.time() - settings.keep))
    return report(page, remembered.arrivals, Period(begin, end, since), tolerance=tolerance, ignore=settings.ignore)


def _wait(seconds: float) -> None:
    click.echo(f"Waiting {seconds:.0f} s, so that Statsig's rate limit is kept", err=True)
    time.sleep(seconds)


def _say_failed(reason: str) -> None:
    click.echo(f"{printable(reason)}. It is tried again", err=True)


class _Pages:
    """Keeps pages of the log in a directory, which is made with the first one."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._number = 0

    def keep(self, receiver: str, body: bytes, key: str) -> None:
        """Keep a page of a receiver, without its key.

        Raises:
            ControlError: It can't be written.
        """
        if not self._number:
            try:
                self._directory.mkdir(mode=0o700)
            except OSError as error:
                why = f"{error.strerror}. Name a directory that does not exist yet"
                raise ControlError(f"{self._directory} can't be made: {why}") from error
        self._number += 1
        file = self._directory / f"{self._number:04}-{_UNSAFE.sub('_', receiver)}.json"
        try:
            file.write_bytes(body.replace(key.encode(), REDACTED.encode()))
        except OSError as error:
            raise ControlError(f"{file} can't be written: {error.strerror}") from error


def _show(name: str, found: Report) -> None:
    counts, period = found.counts, found.period
    click.echo(f"{printable(name)}: the audit log from {rfc3339(period.begin)} to {rfc3339(period.end)}\n")
    for verdict, words in _WORDS.items():
        if number := counts.get(verdict, 0):
            click.echo(f"{number:>6}  {words}")
    if not counts:
        click.echo("  nothing")
    missed = [line.entry for line in found.lines if line.verdict == "missed"]
    unclear = [line for line in found.lines if line.verdict == "ambiguous"]
    _table("Missed: no webhook brought these.", missed)
    at_least = found.missed - len(missed)
    note = f"at least {at_least} of them are missed" if at_least else "perhaps none is missed"
    _table(f"Too much like each other to tell which of them came; {note}.", [line.entry for line in unclear])
    _table(
        "About webhooks and integrations.",
        found.about_webhooks,
        {entry.id: ABOUT_WEBHOOK[entry.action_type] for entry in found.about_webhooks},
    )
    unknown = sorted({line.entry.action_type for line in found.lines if line.verdict == "unknown_type"})
    if unknown:
        types = ", ".join(printable(one) or "none" for one in unknown)
        click.echo(f"\nIt is not known whether Statsig sends webhooks for these types: {types}")
    if found.unreadable:
        click.echo(f"\n{counted(len(found.unreadable), 'thing')} in the log can't be read:")
        for why in found.unreadable:
            click.echo(f"  {printable(why)}")
    if period.begin < period.remembered:
        click.echo(f"\nWhat came is remembered since {rfc3339(period.remembered)}.")
    click.echo("")


def _table(title: str, entries: Sequence[AuditEntry], what: dict[str, str] | None = None) -> None:
    if entries:
        click.echo(f"\n{title}\n")
        rows = [
            (
                rfc3339(entry.second),
                entry.name,
                entry.user_name or entry.user_email or entry.user_id or "",
                what[entry.id] if what else entry.text,
                entry.action_type,
            )
            for entry in entries
        ]
        print_table(("TIME", "NAME", "BY", "WHAT", "TYPE"), rows)
