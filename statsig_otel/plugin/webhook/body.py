"""Splits the body of a webhook into items and keeps the config changes; recognises the URL verification.

A body has one of three shapes: an array of events under `data`, a bare array of events, or the URL verification, which
Statsig sends unsigned when the webhook is saved. A single event object, bare or under `data`, is a batch of one. An
object whose own `eventName` is that of a config change is one change, whatever its `data` contains. Of members with the
same name the last counts; but a body whose earlier `data` contains a change is malformed, so that none is lost.
"""

import re
from collections import Counter
from dataclasses import dataclass
from json import JSONDecodeError, JSONDecoder
from operator import attrgetter
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

from statsig_otel.plugin.webhook import lenient_json
from statsig_otel.plugin.webhook.errors import MalformedBodyError, check_body
from statsig_otel.plugin.webhook.lenient_json import MAX_AT_ONCE, Item, Items, Members

CONFIG_CHANGE: Final = "statsig::config_change"

MAX_URL_VERIFICATION_SIZE: Final = 4096
"""Bytes. A longer body is not a URL verification, so nothing longer has to be read before it is known who sent it."""

_CHANGE_BYTES: Final = CONFIG_CHANGE.encode()
_QUOTED_CHANGE: Final = msgspec.Raw(b'"%s"' % _CHANGE_BYTES)

_MAX_BRACES: Final = 8
"""Opening braces that are tried when the object around a place is looked for."""

_ESCAPED_LETTER: Final = re.compile(rb"\\u00(?:3a|4e|5f|6[0-9a-f]|7[0-9a-f])", re.IGNORECASE)
"""The escapes (RFC 8259, section 7) of characters in the names `data` and `eventName` and in that of config changes."""

_MAX_COUNTED_BY_TEXT: Final = 256 << 10
"""Bytes of a body whose items are counted by making a list of their texts: faster, with four times the memory."""

_MAX_NAMED: Final = 1 << 20
"""Bytes of a body whose items are counted by name: each name takes memory."""


@dataclass(frozen=True, slots=True)
class ParsedBody:
    """The items of one webhook.

    Attributes:
        count: The number of items in the body.
        changes: The items that are config changes, in order. The others are only counted.

    Example:
        >>> from statsig_otel.plugin import parse
        >>> parsed = parse(b'[{"eventName": "statsig::config_change"}, {"eventName": "statsig::gate_exposure"}]')
        >>> (parsed.count, len(parsed.changes))
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


_Scalar: TypeAlias = str | int | float | bool | None


class _Object(msgspec.Struct, gc=False):
    """Any object. Its members are skipped."""


class _EnvelopeOfItems(msgspec.Struct, gc=False):
    data: list[_Object | _Scalar]


class _EnvelopeOfTexts(msgspec.Struct, gc=False):
    data: list[msgspec.Raw]


class _Named(msgspec.Struct, gc=False):
    name: str = msgspec.field(name="eventName", default="")


class _NamedBody(_Named, gc=False):
    data: list[_Named] | _Named = msgspec.field(default_factory=list)


_url_verification: Final = msgspec.json.Decoder(_UrlVerification)
_items: Final = msgspec.json.Decoder(list[_Object | _Scalar])
_texts: Final = msgspec.json.Decoder(list[msgspec.Raw])
_envelope_of_items: Final = msgspec.json.Decoder(_EnvelopeOfItems)
_envelope_of_texts: Final = msgspec.json.Decoder(_EnvelopeOfTexts)
_named: Final[msgspec.json.Decoder[list[_Named] | _NamedBody]] = msgspec.json.Decoder(list[_Named] | _NamedBody)
_json_decoder: Final = JSONDecoder()
_name: Final = attrgetter("name")


def parse_url_verification(body: bytes) -> str | None:
    """The code of a URL verification, which has to be sent back; None if the body is anything else.

    Statsig sends it unsigned, before there is a signing secret: ask this before you check the signature.

    Returns:
        1 to 256 printable ASCII characters.

    Raises:
        TypeError: The body is a string, not bytes.

    Example:
        >>> from statsig_otel.plugin import parse_url_verification
        >>> parse_url_verification(b'{"data": {"event": "url_verification", "verification_code": "abc123"}}')
        'abc123'
        >>> parse_url_verification(b"[]") is None
        True
    """
    check_body(body)
    if len(body) > MAX_URL_VERIFICATION_SIZE:
        return None
    try:
        body.decode()
        return _url_verification.decode(body).data.verification_code
    except (UnicodeDecodeError, msgspec.MsgspecError, RecursionError):
        return None


def parse(body: bytes) -> ParsedBody:
    """Split a verified body into its items.

    Raises:
        MalformedBodyError: The body is not UTF-8, not JSON, or has none of the known shapes.
        TypeError: The body is a string, not bytes.

    Example:
        >>> from statsig_otel.plugin import parse
        >>> parse(b'{"data": [{"eventName": "statsig::config_change"}]}').count
        1
    """
    check_body(body)
    try:
        # The whole body: msgspec does not check the strings that it skips.
        if not body.isascii():
            body.decode()
    except UnicodeDecodeError as error:
        raise MalformedBodyError("not_utf8", f"the body is not UTF-8 at byte {error.start}") from error
    return _parse_strictly(body) or _parse_leniently(body.decode())


def event_names(body: bytes) -> Counter[str]:
    """How often each event name occurs among the items of a parsed body that are not config changes.

    Nothing is counted in a body over 1 MiB, or one that only the lenient reader can read.
    """
    try:
        found = _named.decode(body) if len(body) <= _MAX_NAMED else []
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return Counter()
    if isinstance(found, _NamedBody):
        inner = found.data if isinstance(found.data, list) else [found.data]
        found = [found] if found.name or not inner else inner
    names = Counter(map(_name, found))
    del names[CONFIG_CHANGE]
    return names


def _parse_strictly(body: bytes) -> ParsedBody | None:
    """Find the changes of a batch by their name, and step over everything else once.

    None if the lenient reader has to read the body. The name alone takes the place of each change. If the batch then
    has that many items which are the name, each change was an item, and not a part of one.
    """
    if _may_contain_escaped_name(body):
        return None
    changes: list[bytes] = []
    rest: list[bytes | memoryview | msgspec.Raw] = []  # as the changes, from the end of the body to its beginning
    view = memoryview(body)
    begin, characters = len(body), ""
    try:
        while (at := body.rfind(_CHANGE_BYTES, 0, begin)) >= 0:  # rfind takes a quarter of the time of find
            characters = characters or body.decode("latin-1")  # one for each byte: only their positions matter
            start, stop = _change_around(characters, at, begin)
            changes.append(body[start:stop])
            rest += view[stop:begin], _QUOTED_CHANGE
            begin = start
        items = _items_of(b"".join([view[:begin], *reversed(rest)]) if changes else body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if changes and len(changes) != (items.count(_QUOTED_CHANGE) or items.count(CONFIG_CHANGE)):
        return None
    return ParsedBody(len(items), tuple(Item(change.decode()) for change in reversed(changes)))


def _may_contain_escaped_name(body: bytes) -> bool:
    first = body.find(b"\\")  # much faster than the search
    return first >= 0 and _ESCAPED_LETTER.search(body, first) is not None


def _change_around(text: str, at: int, end: int) -> tuple[int, int]:
    """The beginning and the end of the innermost object around a position, which has to be a config change.

    Args:
        text: The text.
        at: The position.
        end: Where the next change begins. This one is looked for before that, and within `MAX_AT_ONCE` characters.

    Raises:
        ValueError: It is not JSON or not a change, or it was not found behind one of the last opening braces.
        RecursionError: It is nested past the decoder's limit.
    """
    start = at
    for _ in range(_MAX_BRACES):
        start = text.rindex("{", 0, start)
        try:
            value, length = _json_decoder.raw_decode(text[start : min(end, start + MAX_AT_ONCE)])
        except JSONDecodeError:  # a brace within a string, or a longer object
            continue
        if start + length > at:
            if not is_config_change(value):
                break
            return start, start + length
    raise ValueError("not found")


def _items_of(batch: bytes) -> list[Any]:
    """The items of a batch: as texts, or with objects that are all alike."""
    bare = batch.lstrip()[:1] == b"["
    if len(batch) <= _MAX_COUNTED_BY_TEXT:
        return _texts.decode(batch) if bare else _envelope_of_texts.decode(batch).data
    return _items.decode(batch) if bare else _envelope_of_items.decode(batch).data


def _parse_leniently(text: str) -> ParsedBody:
    """Read a body that contains something that msgspec refuses, or has none of the known shapes."""
    try:
        parsed = _parsed_from(text, lenient_json.split(text, is_config_change, names=("data", "eventName")))
    except JSONDecodeError as error:
        found = f"{error.msg} at character {error.pos}"
        if text.startswith("\ufeff"):  # RFC 8259, section 8.1: a sender must not add one, and a reader may refuse it
            found = "it begins with a byte order mark, which Statsig does not send: look at who rewrites the body"
        raise MalformedBodyError("not_json", f"the body is not JSON: {found}") from error
    if parsed is None:
        raise MalformedBodyError("unknown_shape", "the body is neither a batch of events nor one event")
    return parsed


def _parsed_from(text: str, parts: Items | Members | None) -> ParsedBody | None:
    if parts is None:
        return None
    if isinstance(parts, Items):
        return ParsedBody(parts.count, parts.kept)
    if parts.last.get("eventName") == CONFIG_CHANGE:
        return ParsedBody(1, (Item(text.strip(" \t\n\r")),))
    if parts.lost:  # two `data`: the changes of the earlier one would be lost
        return None
    data = parts.last.get("data")
    if isinstance(data, Items):
        return ParsedBody(data.count, data.kept)
    if isinstance(data, Item):
        return ParsedBody(1, (data,))
    if "eventName" in parts.last or (isinstance(data, dict) and "eventName" in data):
        return ParsedBody(1, ())
    return None


def is_config_change(value: object) -> bool:
    """Whether a decoded item is a config change, by the name of its event."""
    return isinstance(value, dict) and value.get("eventName") == CONFIG_CHANGE
