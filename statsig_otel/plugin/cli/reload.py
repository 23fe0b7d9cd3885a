"""`statsig-otel reload`: have the running service read its configuration again."""

import os
from pathlib import Path
from typing import Any, Final

import click

from statsig_otel.config.errors import ConfigError
from statsig_otel.exporters.queue.directory import CONTROL
from statsig_otel.plugin.cli.queue import location_options, named_locations
from statsig_otel.plugin.control.socket import ControlError, ServiceNotRunningError, call
from statsig_otel.plugin.settings.storage import find_directory

_ELSEWHERE: Final = "the service's log says where its queue is: name that with --directory DIR, or send it SIGHUP"


@click.command()
@location_options
def command() -> None:
    """Have the running service read its configuration again, as SIGHUP does.

    All of it is read and checked first: an error changes nothing, and is shown. Signing secrets, the tolerance and the
    mapping count from the next request on, certificates from the next connection on. An exporter that changed, or whose
    certificates did, finishes its batch, and starts anew at its place; one that is blocked tries again at once.
    Endpoints, paths, TLS keys, limits and the directory need a restart.

    The service reads what it was started with, in its own environment. Here --config only tells the queue's directory,
    by which the service is reached: nothing else of it has to be right, and no variable has to be set but those that
    name the directory. Without --config and --directory the directory is looked for as for `statsig-otel queue`. A
    service without a queue takes SIGHUP alone.

    \b
    Exit codes:
      0  done
      1  refused, with the reason, or no service is running
      2  an option is wrong
    """  # noqa: D301 - click wants the character itself
    directory, locations = named_locations()
    try:
        answer = _ask(directory or _find(locations))
    except ControlError as error:
        raise click.ClickException(str(error)) from error
    for change in answer["changes"]:
        click.echo(change)
    if not answer["changes"]:
        click.echo("Nothing has changed.")


def _find(locations: tuple[str, ...]) -> Path:
    if not locations:
        return find_directory(None, os.environ)
    from statsig_otel.plugin.settings.reading import read_directory  # noqa: PLC0415 - takes long to load

    try:
        return read_directory(locations, os.environ)
    except ConfigError as error:
        raise ControlError(
            f"the queue's directory can't be told, by which the service is reached\n{error}\n"
            f"hint: nothing was reloaded; {_ELSEWHERE}"
        ) from error


def _ask(directory: Path) -> Any:
    try:
        return call(directory / CONTROL, "reload")
    except ServiceNotRunningError as error:
        raise ControlError(_why_nobody_answers(directory)) from error
    except ControlError as error:
        if isinstance(error.__cause__, PermissionError):
            raise ControlError(
                f"{directory} can't be reached: only the service's own user, and root, can use its queue"
            ) from error
        raise


def _why_nobody_answers(directory: Path) -> str:
    from statsig_otel.plugin.doctor.storage import owner  # noqa: PLC0415 - as above

    try:
        who = owner(directory)
    except OSError:
        who = None
    if who is not None:
        return f"{directory} is in use by {who}: it does not answer yet, or any more"
    return f"no service is running on {directory}\nhint: {_ELSEWHERE}"
