"""Splits the body of a webhook into events and keeps the config changes; recognises the URL verification.

A body has one of three shapes: an array of events under `data`, a bare array of events, or the URL verification, which
Statsig sends unsigned when the webhook is saved. A single event object, bare or under `data`, is a batch of one. An
object whose own `eventName` is that of a config change is one change, whatever its `data` contains. Of members with the
same name the last counts; but a body whose earlier `data` contains a change is malformed, so that none is lost.
"""

from dataclasses import dataclass
from json import JSONDecodeError, JSONDecoder
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

from statsig_otel.plugin.webhook import lenient_json
from statsig_otel.plugin.webhook.errors import MalformedBodyError
from statsig_otel.plugin.webhook.lenient_json import Item, Items, Members

CONFIG_CHANGE: Final = "statsig::config_change"

MAX_URL_VERIFICATION_SIZE: Final = 4096
"""Bytes. A longer body is not a URL verification, so nothing longer has to be read before its sender is known."""

_CHANGE_BYTES: Final = CONFIG_CHANGE.encode()
_CHANGE_NAME: Final = msgspec.Raw(b'"%s"' % _CHANGE_BYTES)

_SEARCHED_SIZES: Final = range(8 << 10, 1 << 20)
"""Bytes of a batch that is searched for the name of config changes. Reading a smaller one costs no more, and a larger
one should not be read twice."""

_MAX_FOUND_CHANGES: Final = 8
"""By a search: each costs a copy of the rest of the batch."""

_MAX_BRACES: Final = 8
"""Opening braces that are tried when the object around a place is looked for."""

_MAX_ESCAPES: Final = 64
"""Escapes that are looked at one by one; the rest of a text is searched as a whole."""

_MAX_COUNTED_BY_TEXT: Final = 256 << 10
"""Bytes of a body whose items are counted by making a list of their texts: faster, with four times the memory."""

_MAX_TEXTS: Final = 1 << 18
"""Items of which a list of texts is made. Each takes at least 50 bytes there, and may be two bytes in the body."""


@dataclass(frozen=True, slots=True)
class Payload:
    """The events of one request.

    Attributes:
        count: The number of items in the body.
        changes: The items that are config changes, in order. The others are only counted.

    Example:
        >>> from statsig_otel.plugin import parse
        >>> payload = parse(b'[{"eventName": "statsig::config_change"}, {"eventName": "statsig::gate_exposure"}]')
        >>> (payload.count, len(payload.changes))
        (2, 1)
    """

    count: int
    changes: tuple[Item, ...]

    @property
    def ignored(self) -> int:
        """The number of items that are not config changes."""
        return self.count - len(self.changes)


class _Code(msgspec.Struct, forbid_unknown_fields=True):
    event: Literal["url_verification"]
    verification_code: Annotated[str, msgspec.Meta(pattern=r"\A[\x20-\x7e]{1,256}\Z")]


class _UrlVerification(msgspec.Struct, forbid_unknown_fields=True):
    data: _Code


_ABSENT: Final = msgspec.Raw()
_Scalar: TypeAlias = str | int | float | bool | None


class _Object(msgspec.Struct, gc=False):
    """Any object. Its members are skipped."""


class _Event(msgspec.Struct, gc=False):
    # Raw, so that a name that is not a string costs nothing and leaves its neighbours on the fast path.
    eventName: msgspec.Raw = _ABSENT  # noqa: N815 - Statsig's name


class _Envelope(msgspec.Struct):
    data: msgspec.Raw = _ABSENT
    eventName: msgspec.Raw = _ABSENT  # noqa: N815 - Statsig's name


class _EnvelopeOfItems(msgspec.Struct, gc=False):
    data: list[_Object | _Scalar]


class _EnvelopeOfTexts(msgspec.Struct, gc=False):
    data: list[msgspec.Raw]


_url_verification: Final = msgspec.json.Decoder(_UrlVerification)
_items: Final = msgspec.json.Decoder(list[_Object | _Scalar])
_envelope_of_items: Final = msgspec.json.Decoder(_EnvelopeOfItems)
_envelope_of_texts: Final = msgspec.json.Decoder(_EnvelopeOfTexts)
_event: Final = msgspec.json.Decoder(_Event)
_events: Final = msgspec.json.Decoder(list[_Event | _Scalar])
_envelope: Final = msgspec.json.Decoder(_Envelope)
_texts: Final = msgspec.json.Decoder(list[msgspec.Raw])
_value: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder()
_json_decoder: Final = JSONDecoder()


def parse_url_verification(body: bytes) -> str | None:
    """The code of a URL verification, which has to be sent back; None if the body is anything else.

    Statsig sends it unsigned, before there is a signing secret: ask this before you check the signature.

    Returns:
        1 to 256 printable ASCII characters.

    Example:
        >>> from statsig_otel.plugin import parse_url_verification
        >>> parse_url_verification(b'{"data": {"event": "url_verification", "verification_code": "abc123"}}')
        'abc123'
        >>> parse_url_verification(b"[]") is None
        True
    """
    if len(body) > MAX_URL_VERIFICATION_SIZE:
        return None
    try:
        body.decode()
        return _url_verification.decode(body).data.verification_code
    except (UnicodeDecodeError, msgspec.MsgspecError, RecursionError):
        return None


def parse(body: bytes) -> Payload:
    """Split a verified body into its events.

    Raises:
        MalformedBodyError: The body is not UTF-8, not JSON, or has none of the known shapes.

    Example:
        >>> from statsig_otel.plugin import parse
        >>> parse(b'{"data": [{"eventName": "statsig::config_change"}]}').count
        1
    """
    try:
        # The whole body: msgspec does not check the strings that it skips.
        if not body.isascii():
            body.decode()
    except UnicodeDecodeError as error:
        raise MalformedBodyError("not_utf8", f"the body is not UTF-8 at byte {error.start}") from error
    try:
        payload = _parse_strictly(body)
    except (msgspec.MsgspecError, RecursionError):
        payload = None
    return payload or _parse_leniently(body.decode())


def _parse_strictly(body: bytes) -> Payload | None:
    """Read a body with msgspec, which skips exposures fast. None if the lenient reader has to read it."""
    bare = body.lstrip()[:1] == b"["
    if not _may_contain_change(body):
        try:
            return Payload(_count_elements(body) if bare else _count_enveloped(body), ())
        except msgspec.ValidationError:  # some items are arrays, or it is not a batch
            pass
    return _parse_array(body) if bare else _parse_object(body)


def _count_elements(text: bytes) -> int:
    return len((_texts if len(text) <= _MAX_COUNTED_BY_TEXT else _items).decode(text))


def _count_enveloped(body: bytes) -> int:
    return len((_envelope_of_texts if len(body) <= _MAX_COUNTED_BY_TEXT else _envelope_of_items).decode(body).data)


def _may_contain_change(body: bytes) -> bool:
    """Whether the name of config changes occurs in the body, or could, spelled with escapes."""
    # rfind takes at most half the time of `in`.
    return body.rfind(_CHANGE_BYTES) >= 0 or _may_contain_escaped_name(body)


def _may_contain_escaped_name(text: bytes) -> bool:
    """Whether a name of ASCII letters, `:` and `_` could be spelled with escapes here (RFC 8259, section 7)."""
    at = -1
    for _ in range(_MAX_ESCAPES):
        at = text.find(b"\\", at + 1)
        if at < 0 or text.startswith(b"u00", at + 1):
            return at >= 0
    return text.find(b"\\u00", at + 1) >= 0


def _parse_array(text: bytes) -> Payload | None:
    payload = _search_for_changes(text) if len(text) in _SEARCHED_SIZES else None
    return payload or _parse_elements(text)


def _search_for_changes(text: bytes) -> Payload | None:
    """Find the changes of an array by their name and skip the rest. None if they are many, or can't be found this way.

    With an empty object in place of each change, the rest has to be an array: so each change is an element, and not a
    part of one.
    """
    if _may_contain_escaped_name(text):
        return None
    characters = text.decode("latin-1")  # one for each byte: only their positions matter
    changes: list[bytes] = []
    count, end = 0, len(text)
    rest = text  # the array up to the change that was found last, with an empty object in its place
    try:
        while (at := text.rfind(_CHANGE_BYTES, 0, end)) >= 0:
            found = _object_around(characters, at)
            if found is None or len(changes) == _MAX_FOUND_CHANGES:
                return None
            start, stop = found
            change = text[start:stop]
            if _event.decode(change).eventName != _CHANGE_NAME:
                return None
            changes.insert(0, change)
            count += _count_elements(b"[{}" + rest[stop:]) - 1
            end, rest = start, text[:start] + b"{}]"
        count += _count_elements(rest)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return Payload(count, tuple(map(_read_item, changes)))


def _object_around(text: str, at: int) -> tuple[int, int] | None:
    """The beginning and the end of the innermost object around a position; None after too many opening braces.

    Raises:
        ValueError: It is not JSON, or contains an integer with too many digits.
        RecursionError: It is nested past the decoder's limit.
    """
    start = at
    for _ in range(_MAX_BRACES):
        start = text.rfind("{", 0, start)
        if start < 0:
            return None
        _, end = _json_decoder.raw_decode(text, start)
        if end > at:
            return start, end
    return None


def _parse_elements(text: bytes) -> Payload | None:
    events = _events.decode(text)
    is_name = _is_change_name if _may_contain_escaped_name(text) else _CHANGE_NAME.__eq__
    wanted = [index for index, event in enumerate(events) if isinstance(event, _Event) and is_name(event.eventName)]
    if not wanted:
        return Payload(len(events), ())
    if len(events) > _MAX_TEXTS:
        return None
    texts = _texts.decode(text)
    return Payload(len(events), tuple(_read_item(bytes(texts[index])) for index in wanted))


def _parse_object(body: bytes) -> Payload | None:
    envelope = _envelope.decode(body)
    if _is_change_name(envelope.eventName):
        return Payload(1, (_read_item(body.strip()),))
    data = bytes(envelope.data)
    if data and _may_repeat_data(body, data):
        return None
    if data[:1] == b"[":
        return _parse_array(data)
    if data[:1] == b"{":
        name = _event.decode(data).eventName
        if name != _ABSENT:
            return Payload(1, (_read_item(data),) if _is_change_name(name) else ())
    return Payload(1, ()) if envelope.eventName != _ABSENT else None


def _may_repeat_data(body: bytes, data: bytes) -> bool:
    """Whether there may be an earlier `data` with a change in it. msgspec silently takes the last one."""
    if len(body) - len(data) < len(b'{"data":{"eventName":""},"data":}') + len(CONFIG_CHANGE):
        return False
    return body.count(b'"data"') - data.count(b'"data"') > 1 or body.count(b"\\") > data.count(b"\\")


def _is_change_name(raw: msgspec.Raw) -> bool:
    """Whether a JSON value is the name of config changes, in any spelling."""
    if raw == _CHANGE_NAME:
        return True
    text = bytes(raw)
    return text[:1] == b'"' and b"\\" in text and bool(_value.decode(text) == CONFIG_CHANGE)


def _read_item(text: bytes) -> Item:
    try:
        return Item(text.decode(), _value.decode(text))
    except msgspec.MsgspecError:  # a number out of range
        return lenient_json.read(text.decode())


def _parse_leniently(text: str) -> Payload:
    """Read a body that contains something that msgspec refuses, or has none of the known shapes."""
    try:
        payload = _payload_of(text, lenient_json.split(text, _is_config_change, names=("data", "eventName")))
    except JSONDecodeError as error:
        raise MalformedBodyError("not_json", f"the body is not JSON: {error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise MalformedBodyError("nested_too_deeply", "the body is nested too deeply") from error
    if payload is None:
        raise MalformedBodyError("unknown_shape", "the body is neither a batch of events nor one event")
    return payload


def _payload_of(text: str, parts: Items | Members | None) -> Payload | None:
    if parts is None:
        return None
    if isinstance(parts, Items):
        return Payload(parts.count, parts.kept)
    if parts.last.get("eventName") == CONFIG_CHANGE:
        return Payload(1, (lenient_json.read(text),))
    if parts.lost:  # two `data`: the changes of the earlier one would be lost
        return None
    data = parts.last.get("data")
    if isinstance(data, Items):
        return Payload(data.count, data.kept)
    if isinstance(data, Item):
        return Payload(1, (data,))
    if "eventName" in parts.last or (isinstance(data, dict) and "eventName" in data):
        return Payload(1, ())
    return None


def _is_config_change(value: object) -> bool:
    return isinstance(value, dict) and value.get("eventName") == CONFIG_CHANGE
