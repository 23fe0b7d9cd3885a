"""`statsig-otel demo`: sends a day of sample webhooks through a service and a collector on this machine."""

import re
import sys
from typing import Final, Literal

import click

_URL: Final = re.compile(r"https?://[^/]")


def _check_endpoint(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is not None and not _URL.match(value):
        raise click.BadParameter("write http://HOST:PORT, or https://HOST:PORT for TLS")
    return value


@click.command("demo")
@click.option("--once", is_flag=True, help="Exit after the sample day.")
@click.option(
    "--otlp-endpoint",
    metavar="URL",
    callback=_check_endpoint,
    help="Send to your own collector, such as http://localhost:4317, instead of starting one.",
)
@click.option(
    "--otlp-protocol",
    type=click.Choice(["grpc", "http/protobuf"]),
    default="grpc",
    show_default=True,
    help="The protocol of that endpoint.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show what the service and the collector log.")
def command(
    *, once: bool, otlp_endpoint: str | None, otlp_protocol: Literal["grpc", "http/protobuf"], verbose: bool
) -> None:
    """Watch a day of config changes pass through a real collector.

    Starts the service, a collector (rotel) and a backend behind it, on free ports of 127.0.0.1. Sends an invented day
    of Statsig webhooks, one of them forged and one of them sent twice. Prints each config change that reaches the
    backend, and then whether all of them did. After that it keeps listening until Ctrl-C and prints what to try.

    \b
    Exit codes:
      0  every change arrived and the forged one was refused; or Ctrl-C after the day
      1  something else happened
      2  an option is wrong
      above 128: a signal ended the demo before the day was over
    """
    from statsig_otel.plugin.demo.run import Demo, DemoError

    demo = Demo(sys.stdout, once=once, otlp_endpoint=otlp_endpoint, otlp_protocol=otlp_protocol, verbose=verbose)
    try:
        sys.exit(demo.run())
    except DemoError as error:
        raise click.ClickException(str(error)) from error
