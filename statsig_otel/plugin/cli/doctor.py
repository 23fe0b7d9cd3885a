"""`statsig-otel doctor`: checks everything that the service depends on and suggests fixes."""

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict

import click

from statsig_otel.exporters.terminal import pad, printable, width
from statsig_otel.plugin.cli.options import config_option, json_option, listen_option
from statsig_otel.plugin.doctor.checks import diagnose
from statsig_otel.plugin.doctor.finding import Finding


@click.command()
@config_option
@listen_option
@json_option
def command(locations: tuple[str, ...], listen: str | None, *, as_json: bool) -> None:
    """Check everything that the service depends on, and suggest a fix for each problem.

    Checks versions, SQLite's known bugs, the configuration, the queue's directory, the clock, the limits, and whether
    the exporters' endpoints answer. Changes nothing and sends no record. Works while the service runs. If the
    configuration has errors, checks its valid parts. Run it as the service's own user, or as root, with the same
    environment.

    \b
    Exit codes:
      0  no check failed
      1  at least one check failed
      2  an option is wrong
    """
    findings = list(diagnose(locations, os.environ, listen=listen))
    counts = Counter(finding.status for finding in findings)
    if as_json:
        click.echo(
            json.dumps({"checks": [asdict(finding) for finding in findings], "failed": counts["failed"]}, indent=2)
        )
    else:
        _show(findings)
        others = f"{counts['warning']} with a warning, {counts['unknown']} without an answer"
        click.echo(f"\n{len(findings)} checks: {counts['ok']} ok, {counts['failed']} failed, {others}")
    if counts["failed"]:
        click.get_current_context().exit(1)


def _show(findings: Iterable[Finding]) -> None:
    rows = [("CHECK", "STATUS", "RESULT"), *((one.check, one.status, one.detail) for one in findings)]
    hints = [None, *(one.hint for one in findings)]
    first, second = (max(width(printable(row[column])) for row in rows) for column in (0, 1))
    for (check, status, detail), hint in zip(rows, hints, strict=True):
        click.echo(f"{pad(printable(check), first)}  {pad(status, second)}  {printable(detail)}")
        if hint is not None:
            click.echo(f"{' ' * (first + second + 4)}hint: {printable(hint)}")
