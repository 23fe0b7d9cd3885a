"""Makes JSON of the journal, for the live page and `statsig-otel top`: the last requests, changes and attempts.

The command `journal` of the control socket answers with it:

    {"command": "journal", "arguments": {"limit": 20, "records": false}}

`limit` is the most entries of each kind, and `records: true` adds to each change its records in OTLP/JSON, as they are
sent. Both may be left out. The answer, newest first:

    {"requests": [{"at": "2026-11-28T14:00:00.120Z", "count": 3, "receiver": "statsig", "status": 401,
                   "reason": "signature_wrong", "detail": "the client has ...", "items": {}, "port": 0,
                   "path": "", "last": "2026-11-28T14:00:00.980Z"}],
     "changes": [{"at": "...", "receiver": "statsig", "uid": "3f2a...", "bytes": 912, "happened_at": "...",
                  "type": "gate_updated", "title": "layout_v2 updated", "flag": "layout_v2", "action": "updated",
                  "who": "Jane", "environments": ["production"], "description": "...", "services": ["shop"]}],
     "attempts": [{"at": "...", "count": 1, "exporter": "otlp_grpc", "outcome": "retry_later",
                   "reason": "UNAVAILABLE ...", "records": 12, "delivered": 0, "seconds": 0.02}]}

Requests of one second with the same verdict share an entry that counts them, and so do attempts; the rest of the entry
is that of the first one. `path` is the path of a request that led to no receiver. A key of a change is missing if its
record has no such attribute, since Statsig sent none or the mapping drops or renames it. A change with a `note` is of
Statsig's audit log, and no webhook brought it: it is `missed`, or `filled in`. Strings are as they came from outside:
`printable` of `exporters/terminal.py` makes them safe for a terminal.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from statsig_otel import _attributes
from statsig_otel._journal import MOST_ENTRIES, AttemptEntry, ChangeEntry, Journal, RequestEntry, journal
from statsig_otel.exporters.json_lines import to_json_line
from statsig_otel.plugin.control.command import read_arguments

_FIRST_OF: Final[Mapping[str, Sequence[str]]] = {
    "happened_at": (_attributes.HAPPENED_AT,),
    "type": (_attributes.TYPE,),
    "title": (_attributes.TITLE,),
    "flag": (_attributes.FLAG_KEY, _attributes.LABEL_NAME),
    "action": (_attributes.LABEL_ACTION,),
    "who": (_attributes.USER_NAME, _attributes.USER_EMAIL, _attributes.USER_ID),
    "description": (_attributes.LABEL_DESCRIPTION,),
}
"""The attributes that can fill each key of a change. The first one with a value is shown."""

_SERVICE: Final = "service.name"


class _Arguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments of the command."""

    limit: Annotated[int, msgspec.Meta(ge=0, le=2 * MOST_ENTRIES)] = 2 * MOST_ENTRIES
    records: bool = False


def journal_command(arguments: dict[str, Any]) -> dict[str, Any]:
    """Carry out the command `journal`.

    Raises:
        ControlError: The arguments are wrong.
    """
    given = read_arguments(arguments, _Arguments)
    return entries(journal, limit=given.limit, records=given.records)


def entries(
    of: Journal,
    *,
    limit: int = 2 * MOST_ENTRIES,
    records: bool = False,
    known: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The journal's entries as values for JSON, as the module's docstring shows them.

    Args:
        of: The journal.
        limit: The most entries of each kind.
        records: Whether changes have their records.
        known: Changes that an earlier call returned. Their records are not decoded again.
    """
    changes = of.changes()[:limit]
    decoded = {(one["uid"], one["at"]): one for one in known}
    return {
        "requests": [request(entry) for entry in of.requests()[:limit]],
        "changes": [
            {
                **(decoded.get((entry.uid, _arrived(entry))) or change(entry)),
                **({"records": sent(entry)} if records else {}),
            }
            for entry in changes
        ],
        "attempts": [attempt(entry) for entry in of.attempts()[:limit]],
    }


def request(entry: RequestEntry) -> dict[str, Any]:
    """One entry of requests."""
    shown = {**msgspec.to_builtins(entry), "at": rfc3339_ms(entry.at), "last": rfc3339_ms(entry.last)}
    del shown["run"]  # the count is right only for the last entry of a verdict
    return shown


def attempt(entry: AttemptEntry) -> dict[str, Any]:
    """One entry of attempts."""
    return {**msgspec.to_builtins(entry), "at": rfc3339_ms(entry.at)}


def change(entry: ChangeEntry) -> dict[str, Any]:
    """One change, in short."""
    shown: dict[str, Any] = {
        "at": _arrived(entry),
        "receiver": entry.receiver,
        "uid": entry.uid,
        "bytes": entry.size,
        **({"note": entry.note} if entry.note else {}),
    }
    services: list[str] = []
    for position, (resource, attributes, body) in enumerate(_records(entry)):
        if not position:
            shown |= _in_short(attributes, body)
        if isinstance(service := resource.get(_SERVICE), str):
            services.append(service)
    if len(services) > 1 or shown.get("services") is None:
        shown["services"] = services
    return shown


def sent(entry: ChangeEntry) -> list[dict[str, Any]]:
    """The records of a change in OTLP/JSON; none if they are too large to keep."""
    return [json.loads(to_json_line(one)) for one in _decoded(entry)]


def _arrived(entry: ChangeEntry) -> str:
    return rfc3339_ms(entry.at_ns / 1e9)


def rfc3339_ms(seconds: float) -> str:
    """A time in seconds since the epoch, with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _in_short(attributes: Mapping[str, Any], body: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"title": body} if isinstance(body, str) and body else {}
    for key, names in _FIRST_OF.items():
        for name in names:
            if attributes.get(name):
                found[key] = str(attributes[name])
                break
    environments = attributes.get(_attributes.ENVIRONMENTS) or attributes.get(_attributes.ENVIRONMENT)
    if environments:
        found["environments"] = environments if isinstance(environments, list) else [environments]
    if isinstance(impacted := attributes.get(_attributes.IMPACTED_SERVICES), list):
        found["services"] = impacted
    return found


def _records(entry: ChangeEntry) -> Iterator[tuple[dict[str, Any], dict[str, Any], Any]]:
    """Of each record the attributes of its resource, its own, and its body."""
    for one in _decoded(entry):
        for of_resource in one.resource_logs:
            for of_scope in of_resource.scope_logs:
                for record in of_scope.log_records:
                    resource = _plain_all(of_resource.resource.attributes)
                    yield resource, _plain_all(record.attributes), _plain(record.body)


def _decoded(entry: ChangeEntry) -> Iterator[ExportLogsServiceRequest]:
    for record in entry.records:
        with contextlib.suppress(DecodeError):  # of a consumer's or a mapper's own making
            yield ExportLogsServiceRequest.FromString(record)


def _plain_all(attributes: Sequence[KeyValue]) -> dict[str, Any]:
    return {attribute.key: _plain(attribute.value) for attribute in attributes}


def _plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_plain(one) for one in value.array_value.values]
    if kind == "kvlist_value":
        return _plain_all(value.kvlist_value.values)
    if kind == "bytes_value":
        return value.bytes_value.hex()
    return getattr(value, kind) if kind else None
