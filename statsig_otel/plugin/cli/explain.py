"""`statsig-otel explain`: shows how a receiver would answer and map a body, without sending or storing it."""

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Final, cast

import click
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from statsig_otel.config.configuration import Configuration
from statsig_otel.config.grammar import check
from statsig_otel.exporters.json_lines import to_json_line
from statsig_otel.exporters.local.debug import DebugExporter, DebugSettings
from statsig_otel.exporters.terminal import printable, write
from statsig_otel.plugin.cli.explanation import ExplainedItem, Explanation, SignatureHeaders, explain
from statsig_otel.plugin.cli.options import config_errors_reported, config_option, read_body
from statsig_otel.plugin.record.services import Concerned, Found
from statsig_otel.plugin.settings.catalog import COMPONENTS
from statsig_otel.plugin.settings.environment import read_document
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings
from statsig_otel.plugin.settings.resource import resource_from_environment

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECONDS: Final = re.compile(r"[0-9]{13}")
_MAX_MILLISECONDS: Final = (1 << 64) // 1_000_000
"""The limit of an observed timestamp, which is 64 bits of nanoseconds."""


def _parse_time(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    """A time as milliseconds since the epoch."""
    if value is None or _MILLISECONDS.fullmatch(value):
        return int(value) if value else None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        message = f"{value!r} is neither 13 digits of milliseconds nor a time like 2026-01-31T12:00:00Z"
        raise click.BadParameter(message) from None
    if moment.tzinfo is None:
        raise click.BadParameter(f"{value!r} has no offset from UTC; if it is in UTC, append Z")
    milliseconds = (moment - _EPOCH) // timedelta(milliseconds=1)
    if not 0 <= milliseconds < _MAX_MILLISECONDS:
        raise click.BadParameter(f"{value!r} is before 1970 or after July 2554")
    return milliseconds


@click.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@config_option
@click.option("--receiver", metavar="ID", help="The receiver to use. Required if there are several.")
@click.option("--signature", metavar="TEXT", help="Check this X-Statsig-Signature, together with --timestamp.")
@click.option("--timestamp", metavar="TEXT", help="The X-Statsig-Request-Timestamp that came with the signature.")
@click.option(
    "--at",
    "at_ms",
    metavar="TIME",
    callback=_parse_time,
    help="The time of arrival.  [default: --timestamp, or now]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the records as OTLP/JSON.")
def command(
    *,
    file: Path,
    locations: tuple[str, ...],
    receiver: str | None,
    signature: str | None,
    timestamp: str | None,
    at_ms: int | None,
    as_json: bool,
) -> None:
    """Show how a receiver would answer and map a body. Nothing is sent or stored.

    FILE contains a whole body, as Statsig sends it; - reads it from standard input. The command does what a receiver of
    the configuration does: it checks the signature, the shape and each item, and applies the filter and the mapping.
    Records are shown as they would be sent: with hashed users or without users, if the receiver is configured so. For
    an item that becomes no record, only the event's name is shown.

    The signature is checked only if --signature or --timestamp is given. It is checked against the receiver's secrets,
    as if the request had arrived at its timestamp; with --at the receiver's tolerance applies. A wrong signature
    neither ends the explanation nor changes the exit code.

    \b
    Exit codes:
      0  the body is well-formed, even if all of it is ignored
      1  the body is malformed, all of its items are invalid, or the configuration has errors
      2  an option is wrong, or FILE can't be read
    """
    with config_errors_reported():
        configuration = check(read_document(locations, os.environ), COMPONENTS)
    name, settings = _receiver(configuration, receiver)
    given = signature is not None or timestamp is not None
    if at_ms is None:
        at_ms = int(timestamp) if timestamp and _MILLISECONDS.fullmatch(timestamp) else time.time_ns() // 1_000_000
    explanation = explain(
        read_body(file),
        settings,
        resource=resource_from_environment(os.environ),
        headers=SignatureHeaders(signature, timestamp) if given else None,
        at_ns=at_ms * 1_000_000,
    )
    if as_json:
        click.echo(json.dumps(_as_json(name, explanation), indent=2))
    else:
        _print(name, explanation)
    if not explanation.understood:
        sys.exit(1)


def _receiver(configuration: Configuration, wanted: str | None) -> tuple[str, StatsigReceiverSettings]:
    names = list(configuration.receivers)
    if wanted is None and len(names) > 1:
        raise click.UsageError(f"Choose a --receiver. There are: {', '.join(names)}.")
    name = names[0] if wanted is None else wanted
    if name not in configuration.receivers:
        raise click.UsageError(f"There is no receiver {name!r}. There are: {', '.join(names)}.")
    return name, cast("StatsigReceiverSettings", configuration.receivers[name])


def _print(receiver: str, explanation: Explanation) -> None:
    _write(f"Receiver:  {receiver}")
    _write(f"Signature: {_signature(explanation)}")
    _write(f"Body:      {explanation.size} bytes, {_shape(explanation)}")
    if explanation.too_large:
        _write("           more than max_request_body_size: the receiver answers 413 without reading the items")
    printer = DebugExporter("explain", DebugSettings(verbosity="detailed"), sys.stdout)
    printer.start()
    # Consecutive items with the same outcome and reason, such as a batch of exposures, share one line.
    for _, group in groupby(explanation.items, lambda item: item.index if item.uid else (item.outcome, item.reason)):
        alike = list(group)
        _write("")
        for line in _item(alike):
            _write(line)
        concerned = alike[0].concerned
        for index, record in enumerate(alike[0].records):
            if concerned is not None and concerned.split:
                _write(f"  for {_service(concerned.found[index])}")
            printer.send(record, 1, 0)


def _write(line: str) -> None:
    write(sys.stdout, f"{printable(line)}\n")


def _signature(explanation: Explanation) -> str:
    if explanation.verdict is None:
        return "not needed" if explanation.shape == "url_verification" else "not checked"
    reason = explanation.verdict.reason
    return (
        "valid"
        if reason is None
        else f"{reason}: the receiver answers 401; the rest shows what a valid signature would lead to"
    )


def _shape(explanation: Explanation) -> str:
    if explanation.shape == "url_verification":
        return f"a URL verification: the receiver answers with its code, {explanation.verification_code}"
    if explanation.shape == "event":
        return "one event"
    if explanation.shape == "batch":
        return f"a batch of {len(explanation.items)}"
    return f"malformed: {explanation.problem}"


def _services(concerned: Concerned) -> Iterator[str]:
    """The lines about services that precede the records."""
    if not concerned.found:
        yield "concerns no service: no rule of impacted_services matches"
    elif concerned.too_many:
        yield f"concerns {len(concerned.found)} services, too many for one record each: a single record lists them"
    elif not concerned.split:
        for found in concerned.found:
            yield f"concerns {_service(found)}"


def _service(found: Found) -> str:
    rules = ", ".join(f"rules[{index}]" for index in found.rules)
    return f"the service {found.service}, by {rules} of impacted_services"


def _item(alike: Sequence[ExplainedItem]) -> Iterator[str]:
    first, last = alike[0], alike[-1]
    which = f"Item {first.index}" if first is last else f"Items {first.index} to {last.index}"
    yield f"{which}: {first.outcome}: {first.uid or first.reason}"
    if first.left_out:
        yield f"  left out, because the value's type is unusable: {', '.join(first.left_out)}"
    if first.in_seconds:
        yield "  the timestamp has ten digits, and is read as seconds"
    if first.concerned is not None:
        for line in _services(first.concerned):
            yield f"  {line}"


def _as_json(receiver: str, explanation: Explanation) -> dict[str, object]:
    verdict = explanation.verdict
    reason = None if verdict is None else verdict.reason
    return {
        "receiver": receiver,
        "signature": {
            "checked": verdict is not None,
            "right": None if verdict is None else reason is None,
            "reason": reason,
        },
        "size": explanation.size,
        "too_large": explanation.too_large,
        "shape": explanation.shape,
        "problem": explanation.problem,
        "verification_code": explanation.verification_code,
        "items": [_item_as_json(item) for item in explanation.items],
    }


def _item_as_json(item: ExplainedItem) -> dict[str, object]:
    services = [
        {"name": found.service.name, "namespace": found.service.namespace or None, "rules": found.rules}
        for found in (item.concerned.found if item.concerned else ())
    ]
    return {
        "index": item.index,
        "outcome": item.outcome,
        "reason": item.reason,
        "uid": item.uid,
        "left_out": item.left_out,
        "in_seconds": item.in_seconds,
        "services": services if item.concerned else None,
        "records": [json.loads(to_json_line(ExportLogsServiceRequest.FromString(record))) for record in item.records],
    }
