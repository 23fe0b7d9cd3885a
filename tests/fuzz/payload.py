"""The body of a webhook: its two readers and the standard library agree, and every item is accounted for.

Each record is what the SDK's encoder makes of the same fields. Its first `#` stands for thousands of digits. One input
in `SHARE` is read with small limits, too.
"""

import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any, Final

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from statsig_otel import __version__
from statsig_otel.plugin.record.change_event import ChangeEvent, InvalidItemError
from statsig_otel.plugin.record.mapper import Mapper
from statsig_otel.plugin.record.record import (
    DEFAULT_RESOURCE,
    SCHEMA_URL,
    SCOPE_NAME,
    LogRecordEncoder,
    RecordFields,
)
from statsig_otel.plugin.webhook import lenient_json
from statsig_otel.plugin.webhook.body import (
    CONFIG_CHANGE,
    MAX_URL_VERIFICATION_SIZE,
    ParsedBody,
    _parse_leniently,
    _parse_strictly,
    parse,
    parse_url_verification,
)
from statsig_otel.plugin.webhook.errors import MalformedBodyError
from statsig_otel.plugin.webhook.lenient_json import read
from tests.fuzz.targets import Check, Mutate, is_chosen, limited
from tests.fuzz.trees import change

DATA: Final = Path(__file__).parents[1] / "data"

LONGEST: Final = 2048
ENOUGH: Final = 10_000_000
SHARE: Final = 4
SMALL: Final = {"MAX_PARTS": 9, "MAX_AT_ONCE": 16, "_BLOCK": 8}

TOKENS: Final = (
    b'"data"', b'"eventName"', b'"statsig::config_change"', b'"timestamp"', b'"metadata"', b'"user"', b'"userID"',
    b'"email"', b'"name"', b'"type"', b'"Gate"', b'"action"', b'"updated"', b'"description"', b'"environments"',
    b'"projectName"', b'"projectID"', b'"tags"', b'"targetApps"', b'"event"', b'"url_verification"',
    b'"verification_code"', b"1739400185198", b'"1739400185198"', b"null", b"true", b"NaN", b"-Infinity", b"1e999",
    b"\\ud800", b"\\u0061", b'"statsig::config_ch\\u0061nge"', b"\\udc00",
    b"\xf0\x9f\x98\x80", b"\\n", b'{"eventName":"statsig::config_change"}',
    b"- Updated rule test pass percentage from 100 to 50", b"- Added groups a, b", b"9" * 40, b"\xef\xbb\xbf", b"9#",
)  # fmt: skip

VALUES: Final[tuple[Any, ...]] = (
    None, True, 0, 1, -1, 1.5, 1e300, 10**30, -(10**30), 1739400185198, 1739400185, 253402300799999, 253402300800000,
    "1739400185198", "", "x", " ", "\x00", "\ud800", "\x85", "\U0001f600", "#", [], {}, [""], [None, 1, "a", "a"],
    "Gate", "DynamicConfig", "created", "updated", "production, development", "a,,b", "Dev, Prod, Dev", CONFIG_CHANGE,
    {"eventName": CONFIG_CHANGE, "timestamp": 1, "metadata": {"type": "Gate", "name": "a"}}, {"userID": "u"},
    "- Updated rule a pass percentage from 1% to 50%", "updated rule a rollout from 0 to 1.5", "Added rule a",
    "Removed rule a\n- Deleted rule b", "- Groups added: a, b", "Parameters updated: a,b", "statsig::gate_exposure",
)  # fmt: skip
BELOW: Final[Mapping[str, Sequence[tuple[str, Any]]]] = {
    "": [
        ("eventName", CONFIG_CHANGE), ("data", []), ("timestamp", 1739400185198), ("user", {}), ("userID", "u"),
        ("metadata", {}), ("unitID", "x"), ("x", None),
    ],
    "user": [("name", "n"), ("email", "e@example.com"), ("userID", "u"), ("x", 1)],
    "metadata": [
        (key, "a") for key in (
            "type", "name", "action", "description", "environments", "environment", "projectID", "projectName", "tags",
            "targetApps", "x",
        )
    ],
}  # fmt: skip
"""The members of an envelope, an item and the objects in it, each with a value that is usual there."""

REASONS: Final = {"not_utf8", "not_json", "nested_too_deeply", "unknown_shape"}
TOO_DEEP: Final = "is nested too deeply"
TOO_MANY_PARTS: Final = "has more than 250,000 objects, arrays and members"
MOST_DIGITS: Final = 4300
NOW_NS: Final = 1_739_400_185_198_000_000
UID: Final = "log.record.uid"

_DECIDING: Final = re.compile(rb"data|eventName|%s" % CONFIG_CHANGE.encode())
"""The names by which changes are found."""

Found = tuple[int, list[Any]]
"""The number of items, and the changes among them."""


def seeds() -> Iterator[bytes]:
    """The samples of what Statsig sends, one by one and in batches."""
    for name in ("config_changes", "exposures"):
        items = [one["event"] for one in json.loads((DATA / f"{name}.json").read_text())["events"]]
        yield from (json.dumps(item).encode() for item in items)
        yield json.dumps({"data": items[:2]}, separators=(",", ":")).encode()
    yield b'{"data":{"event":"url_verification","verification_code":"abc123"}}'
    yield b'[{"eventName":"statsig::config_change","timestamp":1,"metadata":{"type":"Gate","name":"a"}},1,{}]'
    for value in (b"#", b"-#", b"9#", b"0.#", rb'"\ud800"'):
        yield b'{"eventName":"statsig::config_change","timestamp":1,"metadata":{"type":"a","name":"b"},"x":%s}' % value
        yield b'[{"eventName":"statsig::config_change","timestamp":1,"metadata":{"type":"a","name":%s}}]' % value


def mutated(data: bytes, random: Random, mutate: Mutate) -> bytes:
    """Other values in the same shape, a member more, a name with an escape, which means the same, or any bytes."""
    if not random.randrange(8) and (found := [*_DECIDING.finditer(data)]):
        at = random.randrange(*random.choice(found).span())
        return data[:at] + b"\\u%04x" % data[at] + data[at + 1 :]
    if data[:1] == b"{" and not random.randrange(16):  # a name can occur twice
        member = json.dumps({random.choice(BELOW[""])[0]: random.choice(VALUES)})
        return member[:-1].encode() + b", " + data[1:]
    if not random.randrange(3):
        with suppress(ValueError, RecursionError):
            document = json.loads(data)
            change(document, random, mutate, keys_below=lambda name: BELOW.get(name, BELOW[""]), values=VALUES)
            return json.dumps(document).encode()
    return mutate(data)


@contextmanager
def checking() -> Iterator[Check]:
    encoder = LogRecordEncoder(include_original=True, include_change_details=True)
    mapper = Mapper(encoder)

    def check(data: bytes) -> None:
        body = data.replace(b"#", b"9" * MOST_DIGITS, 1)
        check_verification(body)
        payload = outcome(body)
        check_readers(body, payload)
        check_against_the_library(body, payload)
        if is_chosen(data, SHARE):
            check_crowded(body, payload)
        if payload is not None:
            check_against_the_sdk(payload, encoder, check_mapped(payload, mapper))

    longest = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)  # the limit is ours, and not that of the interpreter
    try:
        yield check
    finally:
        sys.set_int_max_str_digits(longest)


def outcome(body: bytes) -> ParsedBody | None:
    """What the body contains; None if it is malformed."""
    try:
        payload = parse(body)
    except MalformedBodyError as error:
        assert error.reason in REASONS
        assert str(error).isprintable()
        return None
    assert 0 <= len(payload.changes) <= payload.count
    return payload


def check_readers(body: bytes, payload: ParsedBody | None) -> None:
    """What the quick reader finds, the thorough one finds too, and what one says of an item, the other says."""
    for item in payload.changes if payload is not None else ():
        value, problem = item.decoded()
        assert (spelled(value), problem) == (spelled(read(item.text).value), read(item.text).problem)
    quick = _parse_strictly(body) if payload is not None else None
    if quick is not None:
        assert quick == payload
        try:
            assert quick == _parse_leniently(body.decode())
        except MalformedBodyError as error:
            assert error.reason == "nested_too_deeply"


class Object(dict[str, Any]):
    """An object of the standard library's reader, which also keeps members whose name occurs again."""

    members: list[tuple[str, Any]]


def _object(members: list[tuple[str, Any]]) -> Object:
    made = Object(members)
    made.members = members
    return made


def check_against_the_library(body: bytes, payload: ParsedBody | None) -> None:
    """The contract of the body's shapes, applied to what the standard library reads."""
    try:
        text = body.decode()
        value = json.loads(text, object_pairs_hook=_object)
    except (UnicodeDecodeError, json.JSONDecodeError):
        assert payload is None
        return
    except RecursionError:
        return
    expected = expected_of(value)
    assert (payload is None) == (expected is None)
    if payload is None or expected is None:
        return
    assert (payload.count, len(payload.changes)) == (expected[0], len(expected[1]))
    for item, wanted in zip(payload.changes, expected[1], strict=True):
        assert spelled(json.loads(item.text)) == spelled(wanted)
        if item.problem is None:
            assert spelled(item.value) == spelled(wanted)
            assert is_exact(item.text)
        else:
            assert not is_exact(item.text) or item.problem == TOO_DEEP


def check_crowded(body: bytes, payload: ParsedBody | None) -> None:
    """With a small limit for parts, the same changes are found, and only those above it can't be read any more."""
    with limited(lenient_json, SMALL):
        crowded = outcome(body)
        assert crowded == payload
        if crowded is None:
            return
        assert crowded == _parse_leniently(body.decode())
        found = [item.decoded() for item in crowded.changes]
    for item, (value, problem) in zip(crowded.changes, found, strict=True):
        with suppress(RecursionError):
            if parts(item.text) > SMALL["MAX_PARTS"]:
                assert (value, problem) == (None, TOO_MANY_PARTS)
            else:
                assert (spelled(value), problem) == (spelled(item.value), item.problem)


def parts(text: str) -> int:
    """The arrays, the objects and the members in a value, those with a name that occurs again included."""
    count, left = 0, [json.loads(text, object_pairs_hook=_object)]
    while left:
        one = left.pop()
        if isinstance(one, Object):
            count += 1 + len(one.members)
            left += [member for _, member in one.members]
        elif isinstance(one, list):
            count += 1
            left += one
    return count


def is_exact(text: str) -> bool:
    """Whether JSON can express each number of an item, and none is too long."""
    exact: list[bool] = []
    json.loads(
        text,
        parse_int=lambda digits: exact.append(len(digits.removeprefix("-")) <= MOST_DIGITS),
        parse_float=lambda digits: exact.append(math.isfinite(float(digits))),
        parse_constant=lambda _: exact.append(False),
    )
    return all(exact)


def spelled(value: Any) -> str:
    """The same string for the same value, and another one for each other value of JSON."""
    return json.dumps(value, sort_keys=True)


def is_change(value: Any) -> bool:
    return isinstance(value, dict) and value.get("eventName") == CONFIG_CHANGE


def expected_of(value: Any) -> Found | None:
    if isinstance(value, list):
        return len(value), [item for item in value if is_change(item)]
    if not isinstance(value, Object):
        return None
    if is_change(value):
        return 1, [value]
    if any(map(lost, earlier(value))):
        return None
    data = value.get("data")
    if isinstance(data, list):
        return len(data), [item for item in data if is_change(item)]
    if is_change(data):
        return 1, [data]
    is_event = "eventName" in value or (isinstance(data, dict) and "eventName" in data)
    return (1, []) if is_event else None


def earlier(value: Object) -> Iterable[Any]:
    """The members of an envelope that a later one of the same name hides."""
    for name in ("data", "eventName"):
        yield from [item for key, item in value.members if key == name][:-1]


def lost(value: Any) -> bool:
    return is_change(value) or (isinstance(value, list) and any(map(is_change, value)))


def check_mapped(payload: ParsedBody, mapper: Mapper) -> list[ExportLogsServiceRequest]:
    """Every item is a change, invalid or ignored. Returns the records, as the protobuf library reads them."""
    requests = []
    mapped = mapper.map(payload, NOW_NS)
    assert len(mapped.changes) + len(mapped.invalid) + mapped.ignored == payload.count
    assert mapped == mapper.map(payload, NOW_NS)
    for invalid in mapped.invalid:
        assert invalid.text.decode()
        assert invalid.reason.isprintable()
    for mapped_change in mapped.changes:
        (encoded,) = mapped_change.records
        request = ExportLogsServiceRequest.FromString(encoded)
        assert request.SerializeToString() == encoded
        (resource,) = request.resource_logs
        (record,) = resource.scope_logs[0].log_records
        attributes = {one.key: one.value for one in record.attributes}
        assert len(attributes) == len(record.attributes)
        assert attributes[UID].string_value == mapped_change.uid
        assert len(bytes.fromhex(mapped_change.uid)) == 16
        requests.append(request)
    return requests


def check_against_the_sdk(
    payload: ParsedBody, encoder: LogRecordEncoder, requests: Sequence[ExportLogsServiceRequest]
) -> None:
    """Each record has the fields of its item, as the SDK's encoder writes them."""
    expected = []
    for item in payload.changes:
        with suppress(InvalidItemError):
            if item.problem is None and isinstance(item.value, dict):
                event, name = ChangeEvent.from_item(item.value), uid_of(item.value)
                expected.append(by_the_sdk(encoder.default(event, uid=name, original=item.text), event))
    assert requests == expected


def uid_of(item: dict[str, Any]) -> str:
    """A record's uid, which is the same in each version."""
    canonical = json.dumps(item, sort_keys=True, separators=(",", ":"))
    return sha256(f"statsig-otel/1\n{canonical}".encode()).hexdigest()[:32]


def by_the_sdk(fields: RecordFields, event: ChangeEvent) -> ExportLogsServiceRequest:
    happened = event.happened_at * 1_000_000
    record = LogRecord(
        timestamp=happened if 0 < happened < 1 << 64 else 0,
        observed_timestamp=NOW_NS,
        severity_number=SeverityNumber(fields.severity_number),
        body=fields.body,
        attributes=fields.attributes,  # no array is cut: a thousand elements are longer than `LONGEST`
        event_name=fields.event_name,
    )
    scope = InstrumentationScope(SCOPE_NAME, __version__, SCHEMA_URL)
    return encode_logs([ReadableLogRecord(record, Resource(DEFAULT_RESOURCE), scope)])


def check_verification(body: bytes) -> None:
    """A URL verification is answered with its own code, and nothing else is."""
    code = parse_url_verification(body)
    if code is None:
        return
    assert len(body) <= MAX_URL_VERIFICATION_SIZE
    assert 1 <= len(code) <= 256
    assert all(" " <= character <= "~" for character in code)
    assert json.loads(body) == {"data": {"event": "url_verification", "verification_code": code}}
