"""A change event as an OpenTelemetry log record, encoded.

The record follows the semantic conventions for events: a static EventName, a body of one readable line, no
SeverityText. opentelemetry-proto's messages are filled directly from values that were checked before: the SDK's
encoder drops an attribute that holds a surrogate, is private, and takes several times as long.
"""

import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Final, Literal, Protocol, TypeAlias, get_args

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import SEVERITY_NUMBER_INFO, LogRecord

from statsig_otel import __version__
from statsig_otel.plugin import change_description
from statsig_otel.plugin.change_event import ChangeEvent, InvalidItemError

EVENT_NAME: Final = "statsig.config_change"
SCOPE_NAME: Final = "statsig_otel"
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"
"""The version of the semantic conventions whose registered attributes the records use."""

DEFAULT_RESOURCE: Final[Mapping[str, "AttributeValue"]] = {"service.name": "statsig"}

Scalar: TypeAlias = str | bool | int | float
AttributeValue: TypeAlias = Scalar | Sequence[str] | Sequence[bool] | Sequence[int] | Sequence[float]
UserMode = Literal["full", "hash", "drop"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_NANOSECONDS: Final = (1 << 64) - 1
"""What `fixed64 time_unix_nano` holds: up to July 2554."""

_NO_ITEM: Final[Mapping[str, object]] = {}


def uid(item: Mapping[str, object]) -> str:
    """The `log.record.uid` of one item: 32 hex digits that every delivery of the same item shares.

    The first half of SHA-256 over `statsig-otel/1`, a line feed and the item's canonical JSON: all members, sorted
    keys, no blanks, ASCII escapes. Nothing of the request, the host or the configuration goes in. A change of this rule
    is a major version.

    Raises:
        InvalidItemError: The item has no canonical JSON: it holds NaN or is nested too deeply.

    Example:
        >>> from statsig_otel.plugin import uid
        >>> uid({"timestamp": 1, "metadata": {"name": "a"}}) == uid({"metadata": {"name": "a"}, "timestamp": 1})
        True
    """
    try:
        canonical = json.dumps(item, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except ValueError as error:
        raise InvalidItemError("holds a number that is no JSON") from error
    except RecursionError as error:
        raise InvalidItemError("is nested too deeply") from error
    return sha256(b"statsig-otel/1\n" + canonical.encode("ascii")).hexdigest()[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFields:
    """What of a record a mapping decides.

    Attributes:
        event_name: The EventName.
        body: The body.
        attributes: The attributes, in their order.
        service: Of a record that is about one service, that service as `service.name` and `service.namespace`: for the
            mapping to read, it is in the resource.
    """

    event_name: str
    body: str
    attributes: Mapping[str, AttributeValue]
    service: Mapping[str, str] = field(default_factory=dict)


class Remapping(Protocol):
    """What makes another record of the default one.

    Example:
        >>> from dataclasses import replace
        >>> from statsig_otel.plugin import LogRecordEncoder, Mapper
        >>> class Shouting:
        ...     def apply(self, record, event, item):
        ...         return replace(record, body=record.body.upper())
        >>> mapper = Mapper(LogRecordEncoder(mapping=Shouting()))
    """

    def apply(self, record: RecordFields, event: ChangeEvent, item: Mapping[str, object]) -> RecordFields:
        """The record that goes out. It must not raise.

        Args:
            record: The default record; `dataclasses.replace` makes another one of it.
            event: The change.
            item: The item as Statsig sent it, decoded.
        """
        ...


class LogRecordEncoder:
    """Makes encoded log records of change events.

    Args:
        resource: The resource's attributes, complete.
        user: Who made a change, in full, hashed, or left out. Statsig's description and the original text are not
            touched by it.
        hash_key: The key for `hash`: each value becomes the hex digits of its HMAC-SHA256.
        include_original: Whether the item's own JSON text becomes `log.record.original`.
        include_change_details: Whether what is recognised in the description becomes `statsig.change.*` attributes.
        mapping: Changes each record; None for the default ones.

    Raises:
        ValueError: `user` is none of the three, `hash` has no key, or the original would show users that are to be
            hashed or left out.

    Example:
        >>> from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
        >>> from statsig_otel.plugin import LogRecordEncoder, Mapper, parse
        >>> encoder = LogRecordEncoder(resource={"service.name": "flags"}, user="drop")
        >>> body = b'{"eventName": "statsig::config_change", "timestamp": 1, "metadata": {"type": "Gate", "name": "a"}}'
        >>> (change,) = Mapper(encoder).map(parse(body), observed_ns=2).changes
        >>> (resource_logs,) = ExportLogsServiceRequest.FromString(change.records[0]).resource_logs
        >>> resource_logs.scope_logs[0].log_records[0].event_name
        'statsig.config_change'
    """

    def __init__(
        self,
        *,
        resource: Mapping[str, AttributeValue] = DEFAULT_RESOURCE,
        user: UserMode = "full",
        hash_key: str | None = None,
        include_original: bool = False,
        include_change_details: bool = False,
        mapping: Remapping | None = None,
    ) -> None:
        if user not in get_args(UserMode):
            raise ValueError(f"user: {user!r} is none of {', '.join(get_args(UserMode))}")
        if user == "hash" and not hash_key:
            raise ValueError("user: hash needs a hash_key")
        if user != "full" and include_original:
            raise ValueError(f"include_original would show the users that user: {user} hides")
        self._user = user
        self._hash_key = (hash_key or "").encode()
        self._include_original = include_original
        self._include_change_details = include_change_details
        self._mapping = mapping
        self._template = ExportLogsServiceRequest()
        resource_logs = self._template.resource_logs.add()
        resource_logs.resource.attributes.extend(
            KeyValue(key=key, value=_any_value(value)) for key, value in resource.items()
        )
        scope_logs = resource_logs.scope_logs.add(schema_url=SCHEMA_URL)
        scope_logs.scope.name = SCOPE_NAME
        scope_logs.scope.version = __version__

    def encode(
        self,
        event: ChangeEvent,
        *,
        uid: str,
        observed_ns: int,
        original: str,
        item: Mapping[str, object] = _NO_ITEM,
    ) -> bytes:
        """One serialised `ExportLogsServiceRequest` that holds just this event's record.

        Args:
            event: The change event.
            uid: The item's `uid`.
            observed_ns: When its request arrived, in nanoseconds since the epoch.
            original: The item's own JSON text.
            item: The item, for what a mapping takes from it beside the event.
        """
        request = self.default(event, uid=uid, observed_ns=observed_ns, original=original)
        return request.SerializeToString() if self._mapping is None else self.finish(request, event, item)

    def default(self, event: ChangeEvent, *, uid: str, observed_ns: int, original: str) -> ExportLogsServiceRequest:
        """The request of `encode`, as it is before the mapping. For the parameters see `encode`."""
        request = ExportLogsServiceRequest()
        request.CopyFrom(self._template)
        happened_ns = event.happened_at * 1_000_000
        record = (
            request.resource_logs[0]
            .scope_logs[0]
            .log_records.add(
                # logs.proto: 0 is an unknown time. `change_event.happened_at` tells later ones all the same.
                time_unix_nano=happened_ns if happened_ns <= _MAX_NANOSECONDS else 0,
                observed_time_unix_nano=observed_ns,
                severity_number=SEVERITY_NUMBER_INFO,
                event_name=EVENT_NAME,
            )
        )
        record.body.string_value = event.title
        self._add_attributes(record, event, uid)
        if self._include_change_details and event.description is not None:
            found = change_description.attributes(event.description)
            record.attributes.extend(KeyValue(key=key, value=_any_value(value)) for key, value in found.items())
        if self._include_original:
            _add(record, "log.record.original", original)
        return request

    def finish(
        self,
        request: ExportLogsServiceRequest,
        event: ChangeEvent,
        item: Mapping[str, object],
        service: Mapping[str, str] | None = None,
    ) -> bytes:
        """Apply the mapping to a default request, and serialise it. The request is changed by it.

        Args:
            request: What `default` made.
            event: The change event.
            item: The item.
            service: The service that the record is about, as a mapping reads it.
        """
        if self._mapping is not None:
            record = request.resource_logs[0].scope_logs[0].log_records[0]
            _remap(record, self._mapping, event, item, service or {})
        return request.SerializeToString()

    def _add_attributes(self, record: LogRecord, event: ChangeEvent, uid: str) -> None:
        _add(record, "change_event.category", "feature_flags")
        _add(record, "change_event.type", event.type)
        _add(record, "change_event.source", "statsig")
        _add(record, "change_event.happened_at", _rfc3339(event.happened_at))
        _add(record, "change_event.title", event.title)
        _add(record, "change_event.label.type", event.entity_type)
        _add(record, "change_event.label.name", event.name)
        _add(record, "change_event.label.action", event.action)
        _add(record, "change_event.label.description", event.description)
        _add(record, "feature_flag.key", event.name)
        _add(record, "feature_flag.provider.name", "statsig")
        _add(record, "feature_flag.set.id", event.project_id)
        if len(event.environments) == 1:
            _add(record, "deployment.environment.name", event.environments[0])
        _add(record, "user.name", self._shown(event.user_name))
        _add(record, "user.email", self._shown(event.user_email))
        _add(record, "user.id", self._shown(event.user_id))
        _add(record, "log.record.uid", uid)
        _add(record, "statsig.environments", event.environments)
        _add(record, "statsig.project.name", event.project_name)
        _add(record, "statsig.project.id", event.project_id)
        _add(record, "statsig.tags", event.tags)
        _add(record, "statsig.target_apps", event.target_apps)

    def _shown(self, value: str | None) -> str | None:
        if value is None or self._user == "drop":
            return None
        if self._user == "hash":
            return hmac.new(self._hash_key, value.encode(), sha256).hexdigest()
        return value


def _add(record: LogRecord, key: str, value: str | tuple[str, ...] | None) -> None:
    """Add an attribute, unless there is nothing to say."""
    if not value:
        return
    attribute = record.attributes.add(key=key)
    if isinstance(value, str):
        attribute.value.string_value = value
        return
    elements = attribute.value.array_value.values
    for element in value:
        elements.add(string_value=element)


def fields_in(record: LogRecord, service: Mapping[str, str]) -> RecordFields:
    """What a default record says."""
    attributes = {attribute.key: _plain(attribute.value) for attribute in record.attributes}
    return RecordFields(
        event_name=record.event_name, body=record.body.string_value, attributes=attributes, service=service
    )


def _remap(
    record: LogRecord, mapping: Remapping, event: ChangeEvent, item: Mapping[str, object], service: Mapping[str, str]
) -> None:
    mapped = mapping.apply(fields_in(record, service), event, item)
    record.event_name = mapped.event_name
    record.body.string_value = mapped.body
    del record.attributes[:]
    record.attributes.extend(KeyValue(key=key, value=_any_value(value)) for key, value in mapped.attributes.items())


def _plain(value: AnyValue) -> AttributeValue:
    """The value of an attribute of the default record: a text, an array of texts, or a fraction."""
    if value.HasField("array_value"):
        return [element.string_value for element in value.array_value.values]
    return value.double_value if value.HasField("double_value") else value.string_value


def _any_value(value: AttributeValue) -> AnyValue:
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    array = AnyValue()
    array.array_value.values.extend(_any_value(element) for element in value)
    return array


def _rfc3339(milliseconds: int) -> str:
    moment = _EPOCH + timedelta(milliseconds=milliseconds)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
