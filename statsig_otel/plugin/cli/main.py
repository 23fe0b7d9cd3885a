"""The `statsig-otel` command: loads each subcommand's module only when it is used, so that `--help` is quick."""

import errno
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final, cast

import click

from statsig_otel import __version__

_COMMANDS: Final = {
    "run": "Run the service.",
    "reload": "Make the running service reload its configuration.",
    "validate": "Check a configuration without starting anything.",
    "print-config": "Print a configuration as the service understands it, without secrets.",
    "components": "List the components that a configuration can use.",
    "schema": "Print the JSON Schema of the configuration, for editors.",
    "demo": "Watch a day of changes pass through a real collector. Needs no setup.",
    "top": "Show a running service at a glance, each second.",
    "queue": "Show the durable queue, and unblock it.",
    "dead-letters": "List, show, replay or drop what could not be delivered.",
    "reconcile": "Find changes in Statsig's audit log that no webhook brought (experimental).",
    "doctor": "Check everything that the service depends on, and suggest fixes.",
    "send": "Sign a webhook as Statsig would, and post it.",
    "explain": "Show how a receiver would answer and map a body. Sends nothing.",
}
"""Each command with its line of help, so that the list of commands needs no module of theirs."""


_OUTPUT_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})
"""Why an output can't be written: a full disk or quota, a file of the largest size, or a terminal that is gone. click
itself handles a pipe without a reader."""


@contextmanager
def _exempt_from_garbage_collection() -> Iterator[None]:
    """Keep the garbage collector away from all objects that the block creates, now and later."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class _LazyGroup(click.Group):
    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            return super().main(*args, **extra)
        except OSError as error:
            if error.errno not in _OUTPUT_ERRORS or error.filename is not None:
                raise
            # At its end Python tries once more to write what is left.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            click.echo(f"Error: the output can't be written: {error.strerror}", err=True)
            sys.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in _COMMANDS:
            return None
        with _exempt_from_garbage_collection():
            module = import_module(f"statsig_otel.plugin.cli.{cmd_name.replace('-', '_')}")
        return cast("click.Command", module.command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="statsig-otel")
@click.pass_context
def main(context: click.Context) -> None:
    """Turn Statsig config changes into OpenTelemetry events.

    Receives signed webhooks and sends each config change as a log record over OTLP. A change that was answered with 200
    stays on disk until every exporter has delivered it.
    """
    # A umask can take rights from the owner too. Then this service could not open its own files again.
    os.umask(os.umask(0o077) & 0o077)
    # Whoever closed it does not want what is printed. For `run` it stays closed: the exporter `debug` refuses to start,
    # since it must not lose records.
    if sys.stdout is None and context.invoked_subcommand != "run":
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the end
