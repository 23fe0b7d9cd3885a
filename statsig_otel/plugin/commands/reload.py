"""`statsig-otel reload`: have the running service read its configuration again."""

import click

from statsig_otel.plugin.commands.queue import location_options, queue_access


@click.command()
@location_options
def command() -> None:
    """Have the running service read its configuration again, as SIGHUP does.

    All of it is read and checked first: an error changes nothing, and is shown. Signing secrets, the tolerance and the
    mapping count from the next request on. An exporter that changed finishes its batch, and starts anew at its place;
    one that is blocked tries again at once. Endpoints, paths, TLS, limits and the directory need a restart.

    The service is reached through its queue's directory, which is found as for `statsig-otel queue`. One without a
    queue takes SIGHUP alone.

    \b
    Exit codes:
      0  done
      1  refused, with the reason, or no service is running
      2  an option is wrong
    """  # noqa: D301 - click wants the character itself
    with queue_access() as access:
        answer = access.ask("reload")
        directory = access.directory
    if answer is None:
        raise click.ClickException(f"no service is running on {directory}")
    for change in answer["changes"]:
        click.echo(change)
    if not answer["changes"]:
        click.echo("Nothing has changed.")
