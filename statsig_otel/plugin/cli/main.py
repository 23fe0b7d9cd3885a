"""The command line: one lazily loaded command a module in `commands`, so that `--help` stays quick."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Final, cast

import click

from statsig_otel import __version__

_COMMANDS: Final = {
    "run": "Run the service.",
    "reload": "Have the running service read its configuration again.",
    "validate": "Check a configuration, and start nothing.",
    "print-config": "Print a configuration as the service understands it, without secrets.",
    "components": "List what a configuration can name.",
    "schema": "Print the JSON Schema of the configuration, for editors.",
    "demo": "Watch a day of changes arrive behind a real collector. Needs nothing.",
    "queue": "Look at the durable queue, and unblock it.",
    "dead-letters": "List, show, replay or drop what could not be delivered.",
    "doctor": "Look at all that a service depends on, and say what is wrong with it.",
    "send": "Sign a webhook as Statsig would, and post it.",
    "explain": "Say what becomes of a payload, and why. Sends nothing.",
}
"""Each command and its one line of help, so that listing them loads none."""


@contextmanager
def _kept() -> Iterator[None]:
    """What the block makes stays: the garbage collector looks at it neither now nor later."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        with _kept():
            module = import_module(f"statsig_otel.plugin.cli.{cmd_name.replace('-', '_')}")
        return cast("click.Command", module.command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="statsig-otel")
def main() -> None:
    """Statsig config changes as OpenTelemetry events.

    Signed webhooks come in; each config change goes out as a log record over OTLP. What was answered with 200 is on
    disk until every exporter has delivered it.
    """
