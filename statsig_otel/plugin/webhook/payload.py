"""Statsig's webhook, without any I/O: is it Statsig's, and what does it hold?

Signature (Statsig's page "Webhook Signature Verification"): HMAC-SHA256 over `v0:{timestamp}:{raw body}`, keyed with
the whole secret, its `webhook-` prefix included, sent as `v0=` and 64 lower-case hex digits in `X-Statsig-Signature`;
the timestamp, 13 digits of milliseconds, in `X-Statsig-Request-Timestamp`.

A body is one of three shapes: an array of events under `data`, a bare array of events, or the URL verification that
Statsig sends, unsigned, when the webhook is saved. One event object, bare or under `data`, is a batch of one; an object
that is a config change by its own `eventName` is one whatever its `data` holds. The last of equal names counts, but no
change is lost to that: a body whose earlier `data` holds one is of no known shape.

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
"""Bytes. A longer body is no URL verification, so it need not be read before its sender is known."""


_CHANGE_BYTES: Final = CONFIG_CHANGE.encode()


_CHANGE_NAME: Final = msgspec.Raw(b'"%s"' % _CHANGE_BYTES)


_AROUND: Final = range(8 << 10, 1 << 20)
"""Bytes of a batch in which changes are looked for by their name. A smaller one is read as fast, and a larger one
should not be looked at twice."""


_FEW_CHANGES: Final = 8
"""Of which each costs a copy of the rest."""


_FEW_BRACES: Final = 8


_FEW_ESCAPES: Final = 64


_SMALL: Final = 256 << 10
"""Bytes of a body whose items are counted by their texts: that is faster, and takes four times the memory."""


_MANY_ITEMS: Final = 1 << 18
"""Items of which no list of texts is made: each would take 50 bytes and more, though it may be sent in two."""


@dataclass(frozen=True, slots=True)
class Payload:
    """The events of one request.

    Attributes:
        count: How many items the body holds.
        changes: Those that are config changes, in order. The others are counted and ignored.

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
        """How many items are no config change."""
        return self.count - len(self.changes)


class _Code(msgspec.Struct, forbid_unknown_fields=True):
    event: Literal["url_verification"]
    verification_code: Annotated[str, msgspec.Meta(pattern=r"\A[\x20-\x7e]{1,256}\Z")]


class _UrlVerification(msgspec.Struct, forbid_unknown_fields=True):
    data: _Code


_ABSENT: Final = msgspec.Raw()


_Scalar: TypeAlias = str | int | float | bool | None


class _Item(msgspec.Struct, gc=False):
    """Any object; its members are stepped over."""


class _Head(msgspec.Struct, gc=False):
    # Raw, so that a name that is no text costs nothing, and leaves its neighbours on the fast path.
    eventName: msgspec.Raw = _ABSENT  # noqa: N815 - Statsig's name


class _Envelope(msgspec.Struct):
    data: msgspec.Raw = _ABSENT
    eventName: msgspec.Raw = _ABSENT  # noqa: N815 - Statsig's name


class _Enveloped(msgspec.Struct, gc=False):
    data: list[_Item | _Scalar]


class _EnvelopedTexts(msgspec.Struct, gc=False):
    data: list[msgspec.Raw]


_url_verification: Final = msgspec.json.Decoder(_UrlVerification)


_items: Final = msgspec.json.Decoder(list[_Item | _Scalar])


_enveloped_items: Final = msgspec.json.Decoder(_Enveloped)


_enveloped_texts: Final = msgspec.json.Decoder(_EnvelopedTexts)


_head: Final = msgspec.json.Decoder(_Head)


_heads: Final = msgspec.json.Decoder(list[_Head | _Scalar])


_envelope: Final = msgspec.json.Decoder(_Envelope)


_texts: Final = msgspec.json.Decoder(list[msgspec.Raw])


_any: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder()


_objects: Final = JSONDecoder()


def parse_url_verification(body: bytes) -> str | None:
    """The code of a URL verification, which is to be sent back; None if the body is anything else.

    Statsig sends it unsigned, before there is a signing secret. So ask this before the signature is checked.

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
    """Split a verified body into its events, and tell the config changes from all others.

    Raises:
        MalformedBodyError: The body is no UTF-8 JSON of a known shape.

    Example:
        >>> from statsig_otel.plugin import parse
        >>> parse(b'{"data": [{"eventName": "statsig::config_change"}]}').count
        1
    """
    try:
        # Over the whole body, since msgspec does not look into the texts that it skips.
        if not body.isascii():
            body.decode()
    except UnicodeDecodeError as error:
        raise MalformedBodyError("not_utf8", f"the body is no UTF-8 at byte {error.start}") from error
    try:
        payload = _parse_strictly(body)
    except (msgspec.MsgspecError, RecursionError):
        payload = None
    return payload or _parse_leniently(body.decode())


def _parse_strictly(body: bytes) -> Payload | None:
    """All shapes, in all that msgspec reads. None where the lenient reader has to look.

    Exposures cost no more here than stepping over their bytes.
    """
    bare = body.lstrip()[:1] == b"["
    if not _may_hold_change(body):
        try:
            return Payload(_count_elements(body) if bare else _count_enveloped(body), ())
        except msgspec.ValidationError:  # some items are arrays, or it is no batch
            pass
    return _parse_array(body) if bare else _parse_object(body)


def _count_elements(text: bytes) -> int:
    return len((_texts if len(text) <= _SMALL else _items).decode(text))


def _count_enveloped(body: bytes) -> int:
    return len((_enveloped_texts if len(body) <= _SMALL else _enveloped_items).decode(body).data)


def _may_hold_change(body: bytes) -> bool:
    """Whether the event's name stands anywhere in the body, or could, spelled with escapes."""
    # rfind takes half the time of `in` or less.
    return body.rfind(_CHANGE_BYTES) >= 0 or _may_escape_names(body)


def _may_escape_names(text: bytes) -> bool:
    """Whether a name of ASCII letters, `:` and `_` could be spelled with escapes in it (RFC 8259, section 7)."""
    at = -1
    for _ in range(_FEW_ESCAPES):
        at = text.find(b"\\", at + 1)
        if at < 0 or text.startswith(b"u00", at + 1):
            return at >= 0
    return text.find(b"\\u00", at + 1) >= 0


def _parse_array(text: bytes) -> Payload | None:
    around = _parse_around(text) if len(text) in _AROUND else None
    return around or _parse_elements(text)


def _parse_around(text: bytes) -> Payload | None:
    """Step over all but the changes, where these are few and can be found by their name; None where not.

    What stands around them has to be an array with an empty object in the place of each: so each of them is an element,
    and not a part of one.
    """
    if _may_escape_names(text):
        return None
    characters = text.decode("latin-1")  # one for each byte: only their places count
    changes: list[bytes] = []
    count, end = 0, len(text)
    behind = text  # of the change that was found before, which is the next one in the text
    try:
        while (at := text.rfind(_CHANGE_BYTES, 0, end)) >= 0:
            found = _object_around(characters, at)
            if found is None or len(changes) == _FEW_CHANGES:
                return None
            start, stop = found
            change = text[start:stop]
            if _head.decode(change).eventName != _CHANGE_NAME:
                return None
            changes.insert(0, change)
            count += _count_elements(b"[{}" + behind[stop:]) - 1
            end, behind = start, text[:start] + b"{}]"
        count += _count_elements(behind)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return Payload(count, tuple(map(_read, changes)))


def _object_around(text: str, at: int) -> tuple[int, int] | None:
    """Where the innermost object around a place begins and ends; None where too many others begin before the place.

    Raises:
        ValueError: It is no JSON, or has an integer of too many digits.
        RecursionError: It is nested past the decoder's limit.
    """
    start = at
    for _ in range(_FEW_BRACES):
        start = text.rfind("{", 0, start)
        if start < 0:
            return None
        _, end = _objects.raw_decode(text, start)
        if end > at:
            return start, end
    return None


def _parse_elements(text: bytes) -> Payload | None:
    heads = _heads.decode(text)
    is_name = _is_name if _may_escape_names(text) else _CHANGE_NAME.__eq__
    wanted = [index for index, head in enumerate(heads) if isinstance(head, _Head) and is_name(head.eventName)]
    if not wanted:
        return Payload(len(heads), ())
    if len(heads) > _MANY_ITEMS:
        return None
    texts = _texts.decode(text)
    return Payload(len(heads), tuple(_read(bytes(texts[index])) for index in wanted))


def _parse_object(body: bytes) -> Payload | None:
    envelope = _envelope.decode(body)
    if _is_name(envelope.eventName):
        return Payload(1, (_read(body.strip()),))
    data = bytes(envelope.data)
    if data and _may_repeat_data(body, data):
        return None
    if data[:1] == b"[":
        return _parse_array(data)
    if data[:1] == b"{":
        name = _head.decode(data).eventName
        if name != _ABSENT:
            return Payload(1, (_read(data),) if _is_name(name) else ())
    return Payload(1, ()) if envelope.eventName != _ABSENT else None


def _may_repeat_data(body: bytes, data: bytes) -> bool:
    """Whether `data` may be a member twice, the first time with a change in it. msgspec takes the last, silently."""
    if len(body) - len(data) < len(b'{"data":{"eventName":""},"data":}') + len(CONFIG_CHANGE):
        return False
    return body.count(b'"data"') - data.count(b'"data"') > 1 or body.count(b"\\") > data.count(b"\\")


def _is_name(raw: msgspec.Raw) -> bool:
    """Whether a JSON value is the config change's event name, in any spelling."""
    if raw == _CHANGE_NAME:
        return True
    text = bytes(raw)
    return text[:1] == b'"' and b"\\" in text and bool(_any.decode(text) == CONFIG_CHANGE)


def _read(text: bytes) -> Item:
    try:
        return Item(text.decode(), _any.decode(text))
    except msgspec.MsgspecError:  # a number out of range
        return lenient_json.read(text.decode())


def _parse_leniently(text: str) -> Payload:
    """The bodies that hold what msgspec refuses, and those of no known shape."""
    try:
        payload = _payload(text, lenient_json.split(text, _is_config_change, names=("data", "eventName")))
    except JSONDecodeError as error:
        raise MalformedBodyError("not_json", f"the body is no JSON: {error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise MalformedBodyError("nested_too_deeply", "the body is nested too deeply") from error
    if payload is None:
        raise MalformedBodyError("unknown_shape", "the body is neither a batch of events nor one event")
    return payload


def _payload(text: str, parts: Items | Members | None) -> Payload | None:
    if parts is None:
        return None
    if isinstance(parts, Items):
        return Payload(parts.count, parts.kept)
    if parts.last.get("eventName") == CONFIG_CHANGE:
        return Payload(1, (lenient_json.read(text),))
    if parts.lost:  # `data` twice: one of them would be lost
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
