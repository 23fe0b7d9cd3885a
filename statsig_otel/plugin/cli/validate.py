"""`statsig-otel validate`: checks a configuration, and whether this machine has what the configuration needs."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click

from statsig_otel.config.configuration import Configuration
from statsig_otel.config.document import Document
from statsig_otel.config.errors import ConfigError, Problem
from statsig_otel.config.grammar import check
from statsig_otel.plugin.cli.options import config_errors_reported, config_option, listen_option
from statsig_otel.plugin.doctor.resources import check_resources
from statsig_otel.plugin.service.assembly import Assembly
from statsig_otel.plugin.settings.catalog import COMPONENTS
from statsig_otel.plugin.settings.doubts import doubts
from statsig_otel.plugin.settings.environment import check_enabled, read_document
from statsig_otel.plugin.settings.reading import queued_exporters
from statsig_otel.plugin.settings.resource import resource_from_environment
from statsig_otel.plugin.settings.storage import find_directory


@click.command()
@config_option
@listen_option
@click.option(
    "--no-machine",
    is_flag=True,
    help="Skip the checks that depend on the machine: certificates, directories, ports, and credentials that systemd "
    "makes only while the service runs.",
)
def command(locations: tuple[str, ...], listen: str | None, *, no_machine: bool) -> None:
    """Check a configuration without starting anything. It takes the options that `statsig-otel run` takes.

    Reports all errors at once, each with its file, its line and a hint. The command reads the certificates, checks the
    directories, and binds each port for a moment. While the service runs, the directory and the ports that are in use
    are reported as warnings. With --no-machine, a configuration can be checked on any machine.

    \b
    Exit codes:
      0  valid
      1  not valid
      2  an option is wrong
    """
    with config_errors_reported():
        check_enabled(os.environ)
        document = read_document(locations, os.environ, listen=listen)
        configuration, directory, in_use = _check(document, on_machine=not no_machine)
    click.echo("The configuration is valid.")
    for title, names in _summary(configuration, directory).items():
        click.echo(f"  {title:<11}{', '.join(names) or '-'}")
    for sentence in doubts(configuration, document):
        click.echo(f"  warning: {sentence}")
    for problem in in_use:
        click.echo(f"  warning: {replace(problem, hint=None)}")
    if in_use:
        click.echo("  hint: the running service probably uses these; stop it before another one starts here")


def _check(document: Document, *, on_machine: bool) -> tuple[Configuration, Path, list[Problem]]:
    """The configuration, the queue's directory, and the resources that another process uses. Raises all problems."""
    configuration = check(document, COMPONENTS, may_be_stopped=not on_machine)
    directory = find_directory(configuration, os.environ)
    wrong, in_use = check_resources(configuration, document, directory) if on_machine else ([], [])
    problems = [*_component_problems(configuration, document, directory), *wrong]
    if problems:
        raise ConfigError(problems)
    return configuration, directory, in_use


def _component_problems(configuration: Configuration, document: Document, directory: Path) -> Iterator[Problem]:
    """The problems that only the service finds, because it knows all components, each with its file and line."""
    try:
        Assembly(configuration, directory=directory, resource=resource_from_environment(os.environ))
    except ConfigError as error:
        for problem in error.problems:
            yield document.problem(problem.path, problem.message, problem.hint)


def _summary(configuration: Configuration, directory: Path) -> dict[str, list[str]]:
    return {
        "receivers": list(configuration.receivers),
        "exporters": list(configuration.exporters),
        "extensions": list(configuration.service_extensions),
        "pipelines": list(configuration.pipelines),
        "queue": [str(directory)] if queued_exporters(configuration) else [],
    }
