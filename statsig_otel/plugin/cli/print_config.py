"""`statsig-otel print-config`: prints the merged configuration with all defaults and without secrets."""

import os
from typing import Final

import click

from statsig_otel.config.grammar import check
from statsig_otel.config.resolved import plain_values, to_yaml
from statsig_otel.plugin.cli.options import config_errors_reported, config_option
from statsig_otel.plugin.settings.catalog import COMPONENTS
from statsig_otel.plugin.settings.environment import read_document

_REDACTED: Final = "redacted"
_UNSUPPORTED_MODES: Final = {
    "unredacted": "secrets are never printed; see the configuration file, or the variable that it names",
    "unvalidated": "only a valid configuration has known defaults; `statsig-otel validate` lists the errors",
}
"""The Collector's other modes, each with the reason why it is not supported."""


def _check_mode(context: click.Context, parameter: click.Parameter, mode: str) -> str:  # noqa: ARG001 - click's
    if mode != _REDACTED:
        reason = _UNSUPPORTED_MODES.get(mode, f"the only mode is {_REDACTED}")
        raise click.BadParameter(f"{mode} is not supported: {reason}")
    return mode


@click.command()
@config_option
@click.option(
    "--mode",
    default=_REDACTED,
    show_default=True,
    callback=_check_mode,
    expose_value=False,
    help="As in the Collector: print [REDACTED] in place of secrets. There is no other mode.",
)
def command(locations: tuple[str, ...]) -> None:
    """Print the whole configuration as YAML: merged, with ${...} replaced, and with every default.

    Secrets and the values of headers are printed as [REDACTED]. If there are none, the output is a configuration with
    the same meaning.
    """
    with config_errors_reported():
        configuration = check(read_document(locations, os.environ), COMPONENTS)
    click.echo(to_yaml(plain_values(configuration)), nl=False)
