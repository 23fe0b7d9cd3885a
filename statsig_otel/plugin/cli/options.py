"""What several commands share: `--config`, `--listen` and `--json`, the argument FILE, and the report of errors."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

from statsig_otel.config.errors import ConfigError

config_option: Final = click.option(
    "--config",
    "locations",
    type=click.Path(),  # completed as a path, though it may be another location
    multiple=True,
    metavar="LOCATION",
    help="A YAML configuration: PATH, file:PATH, env:NAME or yaml:TEXT. Several are merged; later ones win. "
    "Without one, environment variables are the configuration.",
)
listen_option: Final = click.option(
    "--listen", metavar="HOST:PORT", help="Listen here, whatever endpoint the receivers have."
)
json_option: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@contextmanager
def config_errors_reported() -> Iterator[None]:
    """If the configuration has errors, print them and end the command with exit code 1."""
    try:
        yield
    except ConfigError as error:
        raise click.ClickException(f"the configuration has errors\n{error}") from error


def read_body(file: Path) -> bytes:
    """The bytes of a file, or of standard input for `-`. If the file can't be read, the exit code is 2."""
    try:
        return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise click.UsageError(f"The file can't be read: {error}") from error
