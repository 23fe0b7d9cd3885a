"""Makes the log record of a change event: its uid, its default fields, and its OTLP bytes.

The record follows the semantic conventions for events: a static EventName, a body of one readable line, the severity
INFO without a SeverityText. The SDK's encoder is not used: it is private, drops attributes with a lone surrogate, and
takes several times as long.
"""

import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from types import NoneType
from typing import ClassVar, Final, Literal, Protocol, TypeVar, cast, get_args

from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.logs.v1.logs_pb2 import SEVERITY_NUMBER_INFO

from statsig_otel import __version__, _attributes
from statsig_otel._arguments import check_type, mistyped, type_name, why_not_callable
from statsig_otel.config.errors import ConfigError, Path, Problem, SettingError
from statsig_otel.config.substitution import from_code
from statsig_otel.plugin.record import description
from statsig_otel.plugin.record.arrays import Cut, converted, joined
from statsig_otel.plugin.record.change_event import ChangeEvent, InvalidItemError, valid
from statsig_otel.plugin.record.serializer import AttributeValue, LogSerializer

EVENT_NAME: Final = "statsig.config_change"
SCOPE_NAME: Final = "statsig_otel"
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"
"""The version of the semantic conventions that the records use."""

DEFAULT_RESOURCE: Final[Mapping[str, "AttributeValue"]] = {"service.name": "statsig"}

MAX_RECORD_BYTES: Final = 900_000
"""Below what backends and brokers take: Kafka's default for a message is 1,048,588 bytes."""

UserMode = Literal["full", "hash", "drop"]
IncludeOriginal = bool | Literal["redacted"]

_V = TypeVar("_V", bound=AttributeValue)

_USER: Final = ("name", "email", "userID")
"""The members of an item's user that a record shows."""

_WHO: Final = frozenset({"user", "userid", "unitid"})
"""The members of an item that say who made a change, in lower case."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_canonical: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)

_NO_ITEM: Final[Mapping[str, object]] = {}


def uid(item: Mapping[str, object]) -> str:
    """The `log.record.uid` of one item: 32 hex digits, the same each time that Statsig sends it.

    The first half of SHA-256 over `statsig-otel/1`, a line feed and the item's canonical JSON: all members, sorted
    keys, no spaces, ASCII escapes. It does not depend on the request, the host or the configuration. A change of this
    definition is a major version.

    Raises:
        InvalidItemError: The item has no canonical JSON: it contains NaN or is nested too deeply.
    """
    try:
        canonical = _canonical.encode(item)
    except ValueError as error:
        raise InvalidItemError("contains a number that is not JSON") from error
    except RecursionError as error:
        raise InvalidItemError("is nested too deeply") from error
    return sha256(b"statsig-otel/1\n" + canonical.encode("ascii")).hexdigest()[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFields:
    """The parts of a record that a mapping may change.

    Attributes:
        event_name: The EventName.
        body: The body.
        attributes: The attributes, in order.
        severity_number: The SeverityNumber, 1 to 24.
        severity_text: The SeverityText; empty for none.
        service: The `service.name` and `service.namespace` of a record that is about one service. A mapping may read
            them; they are in the resource.

    Example:
        >>> from dataclasses import replace
        >>> from statsig_otel.plugin import RecordFields
        >>> record = RecordFields(event_name="statsig.config_change", body="new_menu updated", attributes={})
        >>> replace(record, attributes={**record.attributes, "team": "menus"}).attributes
        {'team': 'menus'}
    """

    event_name: str
    body: str
    attributes: Mapping[str, AttributeValue]
    severity_number: int = SEVERITY_NUMBER_INFO
    severity_text: str = ""
    service: Mapping[str, str] = field(default_factory=dict)


class RecordHook(Protocol):
    """Changes each record before it is encoded.

    Example:
        >>> from dataclasses import replace
        >>> from statsig_otel.plugin import LogRecordEncoder, Mapper
        >>> class Shouting:
        ...     def apply(self, record, event, item):
        ...         return replace(record, body=record.body.upper())
        >>> mapper = Mapper(LogRecordEncoder(mapping=Shouting()))
    """

    def apply(self, record: RecordFields, event: ChangeEvent, item: Mapping[str, object], /) -> RecordFields:
        """The changed record. It must not raise.

        Args:
            record: The default record; `dataclasses.replace` gives a changed copy.
            event: The change.
            item: The item as Statsig sent it, decoded.
        """
        ...


class LogRecordEncoder:
    """Makes log records of change events and encodes them.

    Args:
        resource: All attributes of the resource. In their values, and in `hash_key`, `$${` is `${`.
        user: Whether the user who made a change is in the record: `full`, `hash` or `drop`. Statsig's description and
            the original text are not affected.
        hash_key: The key for `hash`: each value becomes the hex digits of its HMAC-SHA256.
        include_original: Whether the item's own JSON text becomes `log.record.original`. `redacted` makes a text of it
            that shows the user as `user` says.
        lowercase_environments: Whether environments are written in lower case, each of them once.
        include_change_details: Whether changes that are recognised in the description become `statsig.change.*`
            attributes.
        mapping: Changes each record; None for the default records.
        max_record_bytes: The most bytes of an encoded record. A larger one loses `log.record.original`.

    Raises:
        ValueError: `user` is not one of the three, `hash` has no key, or the original would show users that `hash` or
            `drop` hides.
        ConfigError: A value of the resource, or the key, contains a reference such as `${env:NAME}`.
        TypeError: An argument has another type, or the mapping has no `apply` that can be called.

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

    _may_refer: ClassVar[bool] = True

    def __init__(
        self,
        *,
        resource: Mapping[str, AttributeValue] = DEFAULT_RESOURCE,
        user: UserMode = "full",
        hash_key: str | None = None,
        include_original: IncludeOriginal = False,
        lowercase_environments: bool = False,
        include_change_details: bool = False,
        mapping: RecordHook | None = None,
        max_record_bytes: int = MAX_RECORD_BYTES,
    ) -> None:
        check_type("resource", resource, Mapping, "a mapping")
        for key, value in resource.items():
            check_type("a key of resource", key, str)
            values = value if isinstance(value, Sequence) and not isinstance(value, bytes) else [value]
            if not all(isinstance(one, str | int | float) for one in values):
                raise TypeError(mistyped(f"resource[{key!r}]", value, "a string, a number, a boolean or a list of one"))
        check_type("hash_key", hash_key, (str, NoneType), "a string or None")
        if self._may_refer:
            resource = {key: _from_code(value, ("resource", key)) for key, value in resource.items()}
            hash_key = hash_key and _from_code(hash_key, ("hash_key",))
        check_type("max_record_bytes", max_record_bytes, int)
        if mapping is not None and (why := why_not_callable(mapping, "apply", "record, event, item")):
            raise TypeError(f"mapping must be a RecordHook or None: {type_name(mapping)} {why}")
        if user not in get_args(UserMode):
            raise ValueError(f"user: {user!r} is not one of {', '.join(get_args(UserMode))}")
        if user == "hash" and not hash_key:
            raise ValueError("user: hash needs a hash_key")
        if user != "full" and include_original is True:
            raise ValueError(f"include_original would show the users that user: {user} hides")
        if user == "full" and include_original == "redacted":
            raise ValueError("include_original: redacted needs user: hash or user: drop")
        self._user = user
        self._hash_key = (hash_key or "").encode()
        self._include_original = include_original
        self._lowercase_environments = lowercase_environments
        self._include_change_details = include_change_details
        self._mapping = mapping
        self._max_record_bytes = max_record_bytes
        self._resource = dict(resource)
        self._serializer = _serializer_of(resource)

    def default(self, event: ChangeEvent, *, uid: str, original: str) -> RecordFields:
        """The record of a change before the mapping.

        Args:
            event: The change event.
            uid: The item's `uid`.
            original: The item's own JSON text.

        Raises:
            InvalidItemError: The original is to be redacted, and is nested too deeply for that.
        """
        attributes = self._attributes(event, uid)
        if self._include_change_details and event.description is not None:
            attributes.update(description.attributes(event.description))
        if self._include_original:
            attributes[_attributes.ORIGINAL] = (
                self._redacted(original) if self._include_original == "redacted" else original
            )
        return RecordFields(event_name=EVENT_NAME, body=event.title, attributes=attributes)

    def encode(
        self, default: RecordFields, event: ChangeEvent, *, observed_ns: int, item: Mapping[str, object] = _NO_ITEM
    ) -> bytes:
        """One serialised `ExportLogsServiceRequest` that contains just this record, after the mapping.

        A record over `max_record_bytes` is made again without `log.record.original`. It has the size in bytes and the
        SHA-256 instead. Nothing else is left out or cut.

        Args:
            default: What `default` made. If it is about one service, that service replaces the one of the resource.
            event: The change event.
            observed_ns: When its request arrived, in nanoseconds since the epoch.
            item: The item, decoded, for a mapping that reads more of it than the event has.

        Raises:
            InvalidItemError: The record is too large, also without the original.
        """
        encoded = self._encode(default, event, observed_ns, item)
        if len(encoded) <= self._max_record_bytes:
            return encoded
        original = default.attributes.get(_attributes.ORIGINAL)
        if isinstance(original, str):
            encoded = self._encode(_without_original(default, original), event, observed_ns, item)
        if len(encoded) <= self._max_record_bytes:
            return encoded
        raise InvalidItemError(
            f"is too large: a record of it has {len(encoded)} bytes, more than max_record_bytes "
            f"({self._max_record_bytes}). Raise that setting, then replay this dead letter"
        )

    def _encode(self, default: RecordFields, event: ChangeEvent, observed_ns: int, item: Mapping[str, object]) -> bytes:
        record = default if self._mapping is None else self._mapping.apply(default, event, item)
        if not isinstance(record, RecordFields):
            raise TypeError(mistyped(f"the answer of {type_name(self._mapping)}.apply", record, "a RecordFields"))
        serializer = self._serializer
        if default.service:
            serializer = _serializer_of(_of_service(default.service, self._resource))
        return serializer.serialize(
            time_ns=event.happened_at * 1_000_000,
            observed_ns=observed_ns,
            event_name=record.event_name,
            body=record.body,
            attributes=record.attributes,
            severity_number=record.severity_number,
            severity_text=record.severity_text,
        )

    def _attributes(self, event: ChangeEvent, uid: str) -> dict[str, AttributeValue]:
        """The attributes that have a value."""
        environments = event.environments
        if self._lowercase_environments:
            environments = joined([converted(environments, str.lower)], distinct=True)
        attributes: dict[str, AttributeValue | None] = {
            _attributes.CATEGORY: "feature_flags",
            _attributes.TYPE: event.type,
            _attributes.SOURCE: "statsig",
            _attributes.HAPPENED_AT: _rfc3339(event.happened_at),
            _attributes.TITLE: event.title,
            _attributes.LABEL_TYPE: event.entity_type,
            _attributes.LABEL_NAME: event.name,
            _attributes.LABEL_ACTION: event.action,
            _attributes.LABEL_DESCRIPTION: event.description,
            _attributes.FLAG_KEY: event.name,
            _attributes.FLAG_PROVIDER: "statsig",
            _attributes.FLAG_SET: event.project_id,
            _attributes.ENVIRONMENT: environments[0]
            if len(environments) == 1 and not isinstance(environments, Cut)
            else None,
            _attributes.USER_NAME: self._shown(event.user_name),
            _attributes.USER_EMAIL: self._shown(event.user_email),
            _attributes.USER_ID: self._shown(event.user_id),
            _attributes.UID: uid,
            _attributes.ENVIRONMENTS: environments,
            _attributes.PROJECT_NAME: event.project_name,
            _attributes.PROJECT_ID: event.project_id,
            _attributes.TAGS: event.tags,
            _attributes.TARGET_APPS: event.target_apps,
        }
        return {key: value for key, value in attributes.items() if value}

    def _redacted(self, original: str) -> str:
        """The item's text, rewritten without the user, or with the hashes that the record has too."""
        item: dict[str, object] = {}
        try:
            for name, value in json.loads(original).items():
                if name.lower() not in _WHO:
                    item[name] = value
                elif (hidden := self._hidden(value)) is not None:
                    item[name] = hidden
            return valid(json.dumps(item, ensure_ascii=False, separators=(",", ":")))
        except RecursionError as error:
            raise InvalidItemError("is nested too deeply") from error

    def _hidden(self, who: object) -> object:
        """A value that says who made a change, hashed or left out (None). Of an object only what a record has stays."""
        if isinstance(who, dict):
            return {name: hidden for name in _USER if (hidden := self._hidden_text(who.get(name))) is not None} or None
        return self._hidden_text(who)

    def _hidden_text(self, value: object) -> str | None:
        if value is None or value == "" or isinstance(value, list | dict):
            return None
        return self._shown(valid(value) if isinstance(value, str) else json.dumps(value))

    def _shown(self, value: str | None) -> str | None:
        if value is None or self._user == "drop":
            return None
        if self._user == "hash":
            return hmac.new(self._hash_key, value.encode(), sha256).hexdigest()
        return value


def _from_code(value: _V, path: Path) -> _V:
    """The value of an argument after its references; see `from_code`."""
    try:
        return cast("_V", _strings_from_code(value))
    except SettingError as error:
        raise ConfigError([Problem(path, error.message, error.hint)]) from None


def _strings_from_code(value: object) -> object:
    if isinstance(value, str):
        return from_code(value)
    return [_strings_from_code(item) for item in value] if isinstance(value, Sequence) else value


class EncoderOfSettings(LogRecordEncoder):
    """An encoder with arguments of settings, whose references are resolved: a `${` in them is only a string."""

    _may_refer = False


def _without_original(record: RecordFields, original: str) -> RecordFields:
    text = original.encode()
    attributes = {name: value for name, value in record.attributes.items() if name != _attributes.ORIGINAL}
    attributes |= {_attributes.ORIGINAL_SIZE: len(text), _attributes.ORIGINAL_HASH: sha256(text).hexdigest()}
    return replace(record, attributes=attributes)


def _serializer_of(resource: Mapping[str, AttributeValue]) -> LogSerializer:
    scope = InstrumentationScope(name=SCOPE_NAME, version=__version__)
    return LogSerializer(resource, scope=scope, schema_url=SCHEMA_URL)


def _of_service(service: Mapping[str, str], resource: Mapping[str, AttributeValue]) -> dict[str, AttributeValue]:
    """The resource of a record about one service, which replaces all `service.*` attributes of the receiver's."""
    others = {key: value for key, value in resource.items() if not key.startswith("service.")}
    return {**service, **others}


def _rfc3339(milliseconds: int) -> str:
    moment = _EPOCH + timedelta(milliseconds=milliseconds)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
