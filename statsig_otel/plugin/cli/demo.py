"""`statsig-otel demo`."""

import re
import sys
from typing import Final, Literal

import click

_URL: Final = re.compile(r"https?://[^/]")


def _check_endpoint(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is not None and not _URL.match(value):
        raise click.BadParameter("write http://HOST:PORT for plain text, or https://HOST:PORT")
    return value


@click.command("demo")
@click.option("--once", is_flag=True, help="End after the sample day.")
@click.option(
    "--otlp-endpoint",
    metavar="URL",
    callback=_check_endpoint,
    help="Send to a collector of your own, such as http://localhost:4317. None is started then.",
)
@click.option(
    "--otlp-protocol",
    type=click.Choice(["grpc", "http/protobuf"]),
    default="grpc",
    show_default=True,
    help="What your own collector takes at that endpoint.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show what the receiver and the collector log.")
def command(
    *, once: bool, otlp_endpoint: str | None, otlp_protocol: Literal["grpc", "http/protobuf"], verbose: bool
) -> None:
    """Watch a day of config changes arrive behind a real collector.

    Starts the receiver, a collector (rotel) and a backend behind it, on free ports of 127.0.0.1; sends a made-up day of
    Statsig webhooks, one of them forged and one of them twice; shows each change event as it comes out behind the
    collector; and says whether all of them did. Then it keeps listening and prints what to try, until Ctrl-C.

    \b
    Exit codes:
      0  every change arrived and the forged one was refused; or Ctrl-C after the day
      1  something else happened
      2  an option is wrong
      above 128: a signal ended it before the day was over
    """  # noqa: D301 - click wants the character itself
    from statsig_otel.plugin.demo.run import Demo, DemoError  # noqa: PLC0415 - loads grpc

    demo = Demo(sys.stdout, once=once, otlp_endpoint=otlp_endpoint, otlp_protocol=otlp_protocol, verbose=verbose)
    try:
        sys.exit(demo.run())
    except DemoError as error:
        raise click.ClickException(str(error)) from error
