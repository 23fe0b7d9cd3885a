"""`statsig-otel validate`: whether a configuration is right, and whether this machine has what it asks for."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click

from statsig_otel.config.errors import ConfigError, Problem
from statsig_otel.config.grammar import Configuration, check
from statsig_otel.config.source import Document
from statsig_otel.plugin.cli.options import config_option
from statsig_otel.plugin.doctor.machine_checks import check_machine
from statsig_otel.plugin.service.service import Service
from statsig_otel.plugin.settings.catalog import COMPONENTS
from statsig_otel.plugin.settings.delivery import unused_keys
from statsig_otel.plugin.settings.environment import check_enabled, read_document, resource_from_environment
from statsig_otel.plugin.settings.reading import configured_exporters, queued_exporters
from statsig_otel.plugin.settings.storage import find_directory


@click.command()
@config_option
@click.option(
    "--no-machine",
    is_flag=True,
    help="Leave out what depends on the machine: certificates, directories and ports.",
)
def command(locations: tuple[str, ...], *, no_machine: bool) -> None:
    """Check a configuration, and start nothing.

    All that is wrong is told at once, each with its file, its line and what to do. Certificates are read, directories
    looked at, and ports bound for a moment. Beside the running service, which is known by its queue, what that one has
    in use is a warning. With --no-machine a configuration can be checked anywhere.

    \b
    Exit codes:
      0  valid
      1  not valid
      2  an option is wrong
    """  # noqa: D301 - click wants the character itself
    try:
        check_enabled(os.environ)
        configuration, directory, in_use = _check(read_document(locations, os.environ), on_machine=not no_machine)
    except ConfigError as error:
        raise click.ClickException(f"the configuration has errors\n{error}") from error
    click.echo("The configuration is valid.")
    for title, names in _found(configuration, directory).items():
        click.echo(f"  {title:<11}{', '.join(names) or '-'}")
    for sentence in unused_keys(configured_exporters(configuration)):
        click.echo(f"  warning: {sentence}")
    for problem in in_use:
        click.echo(f"  warning: {replace(problem, hint=None)}")
    if in_use:
        click.echo("  hint: that is the running service, most likely: it has to end before another one starts here")


def _check(document: Document, *, on_machine: bool) -> tuple[Configuration, Path, list[Problem]]:
    """The configuration, the queue's directory, and what another process has in use.

    Raises:
        ConfigError: All that is wrong with either, or with the machine.
    """
    configuration = check(document, COMPONENTS)
    directory = find_directory(configuration, os.environ)
    wrong, in_use = check_machine(configuration, document, directory) if on_machine else ([], [])
    problems = [*_disagreements(configuration, document, directory), *wrong]
    if problems:
        raise ConfigError(problems)
    return configuration, directory, in_use


def _disagreements(configuration: Configuration, document: Document, directory: Path) -> Iterator[Problem]:
    """What the service itself finds, once it sees all of its components; each where it was written."""
    try:
        Service.from_configuration(configuration, directory=directory, resource=resource_from_environment(os.environ))
    except ConfigError as error:
        for problem in error.problems:
            yield document.problem(problem.path, problem.message, problem.hint)


def _found(configuration: Configuration, directory: Path) -> dict[str, list[str]]:
    return {
        "receivers": list(configuration.receivers),
        "exporters": list(configuration.exporters),
        "extensions": list(configuration.service_extensions),
        "pipelines": list(configuration.pipelines),
        "queue": [str(directory)] if queued_exporters(configuration) else [],
    }
