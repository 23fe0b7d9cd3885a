"""`statsig-otel send`: signs a sample or a given body as Statsig would, and posts it to a receiver."""

import json
import sys
import time
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from statsig_otel.plugin.cli.options import read_body

if TYPE_CHECKING:
    from statsig_otel.plugin.demo.webhook_client import Answer, WebhookClient

_DEFAULT_SAMPLE: Final = "gate"


def _complete_sample(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """The samples whose names begin like this."""
    from statsig_otel.plugin.demo.samples import SAMPLES

    return [name for name in SAMPLES if name.startswith(incomplete)]


def _list_samples(context: click.Context, _: click.Parameter, wanted: bool) -> None:  # noqa: FBT001 - click's signature
    if not wanted or context.resilient_parsing:
        return
    from statsig_otel.plugin.demo.samples import SAMPLES

    width = max(map(len, SAMPLES))
    for name, sample in SAMPLES.items():
        click.echo(f"{name:{width}}  {sample.about}")
    context.exit()


@click.command("send")
@click.argument("file", required=False, type=click.Path(path_type=Path, allow_dash=True))
@click.option("--url", help="The receiver's URL, as `statsig-otel run` prints it. Required, except with --print.")
@click.option(
    "--sample",
    metavar="NAME",
    shell_complete=_complete_sample,
    help="Send this built-in sample, as a new change.  [default: gate]",
)
@click.option("--print", "only_print", is_flag=True, help="Print the body of the sample, and send nothing.")
@click.option(
    "--list-samples", is_flag=True, is_eager=True, expose_value=False, callback=_list_samples, help="List the samples."
)
@click.option("--verify-url", is_flag=True, help="Send a URL verification, as Statsig does when a webhook is saved.")
@click.option(
    "--secret-file",
    type=click.Path(path_type=Path),
    help="Read the signing secret from this file; one line break at its end is removed.",
)
@click.option(
    "--ca-file", type=click.Path(path_type=Path), help="Trust these PEM certificates instead of the system's."
)
@click.option(
    "--timeout", type=click.FloatRange(0.1, 3600), default=10.0, show_default=True, help="Seconds for the request."
)
def command(
    *,
    file: Path | None,
    url: str | None,
    sample: str | None,
    only_print: bool,
    verify_url: bool,
    secret_file: Path | None,
    ca_file: Path | None,
    timeout: float,
) -> None:
    """Sign a webhook as Statsig would, and post it.

    FILE contains a whole body; - reads it from standard input. Its bytes are sent unchanged and unchecked, so that
    malformed bodies can be tried too. With neither FILE nor --sample, the sample `gate` is sent. Each sample contains
    the current time and a random string, so that two sends are two changes. Sending the same FILE twice is a change and
    its redelivery. --print writes a sample to standard output, for a FILE of your own or for `statsig-otel explain -`.

    The signing secret comes from STATSIG_SIGNING_SECRET or from --secret-file. It can't be an argument, because other
    users of the machine could read it. --verify-url needs no secret.

    \b
    Exit codes:
      0  the receiver answered 200 (with --verify-url: and echoed the code)
      1  the receiver answered something else
      2  the receiver did not answer, or the command line is wrong
    """
    if sum((file is not None, sample is not None, verify_url)) > 1:
        raise click.UsageError("FILE, --sample and --verify-url exclude each other.")
    if only_print:
        if file is not None or verify_url:
            raise click.UsageError("--print prints a sample: leave FILE and --verify-url out.")
        body = json.loads(_body(None, sample or _DEFAULT_SAMPLE))
        click.echo(json.dumps(body, indent=2, ensure_ascii=False))
        return
    if url is None:
        raise click.UsageError("Missing option '--url'.")

    from statsig_otel.plugin.demo.webhook_client import SendError, WebhookClient, read_secret

    try:
        if verify_url:
            _verify_url(WebhookClient(url, timeout=timeout, ca_file=ca_file))
        else:
            secret = read_secret(secret_file)
            client = WebhookClient(url, timeout=timeout, ca_file=ca_file)
            _send(client, _body(file, sample or _DEFAULT_SAMPLE), secret)
    except SendError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)


def _verify_url(client: "WebhookClient") -> None:
    answer, echoed = client.verify_url()
    _show(answer)
    if not echoed:
        click.echo("The code was not echoed: Statsig would not register this URL, without an error message.", err=True)
        sys.exit(1)
    click.echo("The code was echoed: Statsig would register this URL.", err=True)


def _send(client: "WebhookClient", body: bytes, secret: str) -> None:
    from statsig_otel.plugin.demo.webhook_client import body_hint

    hint = body_hint(body)
    if hint is not None:
        click.echo(f"Hint: {hint}. The body is sent unchanged.", err=True)
    answer = client.post(body, secret=secret)
    _show(answer)
    if answer.status != HTTPStatus.OK:
        sys.exit(1)


def _body(file: Path | None, sample: str) -> bytes:
    from statsig_otel.plugin.demo.samples import SAMPLES

    if file is None:
        if sample not in SAMPLES:
            raise click.UsageError(f"There is no sample {sample!r}. There are: {', '.join(SAMPLES)}.")
        return SAMPLES[sample].build(time.time_ns() // 1_000_000)
    return read_body(file)


def _show(answer: "Answer") -> None:
    click.echo(answer.status_line)
    if answer.body:
        click.echo(answer.text)
    if answer.hint:
        click.echo(f"Hint: {answer.hint}", err=True)
