"""`statsig-otel reload`: makes the running service reload its configuration."""

import os
from pathlib import Path
from typing import Any, Final

import click

from statsig_otel.config.errors import ConfigError
from statsig_otel.exporters.queue.directory import CONTROL
from statsig_otel.plugin.cli.queue import location_options, named_locations
from statsig_otel.plugin.control.socket import ControlError, ServiceNotRunningError, call
from statsig_otel.plugin.settings.storage import find_directory

_PARTLY: Final = 3
"""The exit code if an exporter can't be started, or certificates can't be renewed."""

_DIRECTORY: Final = "--directory DIR, the queue's directory, which the service's log names"
_HINT: Final = f"pass --config FILE, as the service was started, or {_DIRECTORY}; or send SIGHUP"


@click.command()
@location_options
def command() -> None:
    """Make the running service reload its configuration, as SIGHUP does.

    The service reads and checks the whole configuration first. If there is an error, the command shows it and nothing
    changes. Signing secrets, the tolerance and the mapping apply from the next request on, certificates from the next
    connection on. An exporter whose settings or certificates changed finishes its batch and continues with the new ones
    from the next record; a blocked exporter tries again at once. One that can't be started is blocked. Endpoints,
    paths, TLS keys, limits and the directory need a restart.

    The service reads the locations that it was started with, in its own environment. The --config of this command is
    used only to find the queue's directory, through which the service is reached: the rest of that configuration may be
    invalid, and only the variables that the directory's path contains have to be set. Without --config and --directory,
    the directory is searched for as by `statsig-otel queue`. A service without a queue can only be reloaded by SIGHUP.

    \b
    Exit codes:
      0  done
      1  refused (the reason is printed), or no service is running
      2  an option is wrong
      3  applied, but an exporter can't be started, or certificates can't be renewed (the reasons are printed)
    """
    directory, locations = named_locations()
    try:
        answer = _reload(directory or _find_directory(locations))
    except ControlError as error:
        raise click.ClickException(str(error)) from error
    failures = answer.get("failures", [])  # older services don't tell them apart
    for change in answer["changes"] or ([] if failures else ["Nothing has changed."]):
        click.echo(change)
    for failure in failures:
        click.echo(f"Error: {failure}", err=True)
    if failures:
        click.get_current_context().exit(_PARTLY)


def _find_directory(locations: tuple[str, ...]) -> Path:
    try:
        if not locations:
            return find_directory(None, os.environ)
        from statsig_otel.plugin.settings.reading import read_directory

        return read_directory(locations, os.environ)
    except ConfigError as error:
        raise ControlError(
            f"the configuration does not say where the queue's directory is\n{error}\n"
            f"hint: nothing was reloaded; pass {_DIRECTORY}; or send SIGHUP"
        ) from error


def _reload(directory: Path) -> Any:
    try:
        return call(directory / CONTROL, "reload")
    except ServiceNotRunningError as error:
        raise ControlError(_no_answer(directory)) from error
    except ControlError as error:
        if isinstance(error.__cause__, PermissionError):
            raise ControlError(
                f"{directory} is not accessible: only the service's own user and root can use its queue"
            ) from error
        raise


def _no_answer(directory: Path) -> str:
    from statsig_otel.plugin.doctor.storage import owner

    try:
        process = owner(directory)
    except OSError:
        process = None
    if process is not None:
        return f"{directory} is in use by {process}; that process does not answer"
    return f"no service is running on {directory}\nhint: {_HINT}"
