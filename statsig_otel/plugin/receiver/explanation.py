"""What a receiver makes of a payload, and why: each step's own verdict, and nothing sent. Data in, data out.

Everything is decided by what the receiver itself runs: `webhook` verifies and parses, `Mapper` maps, `ChangeFilter`
filters. The items are decoded once more here, for their place and their name only.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from statsig_otel.plugin.record.change_event import ChangeEvent
from statsig_otel.plugin.record.filter import ChangeFilter
from statsig_otel.plugin.record.mapper import Mapper
from statsig_otel.plugin.record.otlp import AttributeValue
from statsig_otel.plugin.record.services import Concerned
from statsig_otel.plugin.settings.reading import create_mapper, create_verifier
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings
from statsig_otel.plugin.webhook.errors import MalformedBodyError, UnauthorizedError
from statsig_otel.plugin.webhook.lenient_json import Item
from statsig_otel.plugin.webhook.payload import CONFIG_CHANGE, Payload, parse, parse_url_verification

Shape: TypeAlias = Literal["url_verification", "event", "batch"]
ItemOutcome: TypeAlias = Literal["change", "filtered", "ignored", "invalid"]

_KINDS: Final = {list: "an array", str: "a text", bool: "a boolean", type(None): "null"}


@dataclass(frozen=True, slots=True)
class SignatureHeaders:
    """The values of the two headers, as sent; None for one that is missing."""

    signature: str | None
    timestamp: str | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the check of the signature found.

    Attributes:
        reason: The receiver's word for what is wrong, such as `signature_wrong`; None where it is right.
    """

    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedItem:
    """One item of a payload. Beside its records it shows nothing of the item but its event's name.

    Attributes:
        index: Its place, from 0.
        outcome: `change`: records are made of it. `filtered`: the receiver's filter drops it. `ignored`: it is no
            config change. `invalid`: it is one, or may be, and no record can be made of it.
        reason: Why; None for a change.
        uid: A change's uid.
        left_out: The optional fields of a change that had an unusable type.
        concerned: What `impacted_services` says of a change; None where the receiver has none.
        records: A change's records, each a serialised `ExportLogsServiceRequest`, as they would be sent: one, or one
            for each service.
    """

    index: int
    outcome: ItemOutcome
    reason: str | None = None
    uid: str | None = None
    left_out: tuple[str, ...] = ()
    concerned: Concerned | None = None
    records: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What becomes of one request.

    Attributes:
        size: Bytes of the body.
        too_large: Whether that is more than the receiver takes.
        verdict: What the check of the signature found; None where it was not checked.
        shape: What the body is; None where it is nothing that is known.
        problem: What is wrong with such a body.
        verification_code: The code of a URL verification, which is the answer to it.
        items: The items of an event or a batch, in order.
    """

    size: int
    too_large: bool
    verdict: Verdict | None
    shape: Shape | None = None
    problem: str | None = None
    verification_code: str | None = None
    items: tuple[ExplainedItem, ...] = ()

    @property
    def understood(self) -> bool:
        """Whether the body is of a known shape, and not all of its items are invalid."""
        return self.shape is not None and not (self.items and all(item.outcome == "invalid" for item in self.items))


def explain(
    body: bytes,
    settings: StatsigReceiverSettings,
    *,
    resource: Mapping[str, AttributeValue],
    headers: SignatureHeaders | None,
    at_ns: int,
) -> Explanation:
    """Explain one request.

    Where the signature is wrong the receiver looks no further. The rest is explained all the same.

    Args:
        body: The raw body, as sent.
        settings: The receiver's settings.
        resource: Attributes of the records' resource below those that the receiver sets.
        headers: The signature's headers; None to leave the signature unchecked.
        at_ns: When the request is taken to arrive, in nanoseconds since the epoch.
    """
    verdict = None if headers is None else _verify(body, headers, settings, at_ns // 1_000_000)
    unread = Explanation(size=len(body), too_large=len(body) > settings.max_request_body_size, verdict=verdict)
    code = parse_url_verification(body)
    if code is not None:
        return replace(unread, shape="url_verification", verification_code=code)
    try:
        payload = parse(body)
        shape, decoded = _decode(body.decode())
    except MalformedBodyError as error:
        return replace(unread, problem=str(error))
    mapper = create_mapper(settings, resource)
    change_filter = settings.filter.create() if settings.filter else None
    return replace(unread, shape=shape, items=tuple(_explain_items(payload, decoded, mapper, change_filter, at_ns)))


def _verify(body: bytes, headers: SignatureHeaders, settings: StatsigReceiverSettings, at_ms: int) -> Verdict:
    try:
        verification = create_verifier(settings).begin(_values(headers.signature), _values(headers.timestamp), at_ms)
        verification.update(body)
        verification.finish()
    except UnauthorizedError as error:
        return Verdict(error.reason)
    return Verdict()


def _values(header: str | None) -> list[bytes]:
    return [] if header is None else [header.encode(errors="replace")]


def _decode(text: str) -> tuple[Literal["event", "batch"], Sequence[object]]:
    """The items of a body that `parse` has read.

    Raises:
        MalformedBodyError: It is nested so deeply that `parse` could just read it.
    """
    try:
        document = json.loads(text, parse_int=float)  # an integer of too many digits is an error otherwise
    except RecursionError as error:
        raise MalformedBodyError("nested_too_deeply", "the body is nested too deeply") from error
    if isinstance(document, dict) and not _is_change(document):
        data = document.get("data")
        if isinstance(data, list) or (isinstance(data, dict) and "eventName" in data):
            document = data
    return ("batch", document) if isinstance(document, list) else ("event", [document])


def _is_change(value: object) -> bool:
    return isinstance(value, dict) and value.get("eventName") == CONFIG_CHANGE


def _explain_items(
    payload: Payload, decoded: Sequence[object], mapper: Mapper, change_filter: ChangeFilter | None, at_ns: int
) -> Iterator[ExplainedItem]:
    changes = iter(payload.changes)
    for index, value in enumerate(decoded):
        if _is_change(value):
            yield _explain_change(index, next(changes), mapper, change_filter, at_ns)
        else:
            yield ExplainedItem(index=index, outcome="ignored", reason=_why_ignored(value))


def _explain_change(
    index: int, item: Item, mapper: Mapper, change_filter: ChangeFilter | None, at_ns: int
) -> ExplainedItem:
    mapped = mapper.map(Payload(1, (item,)), at_ns)
    for invalid in mapped.invalid:
        return ExplainedItem(index=index, outcome="invalid", reason=invalid.reason)
    for change in mapped.changes:
        return ExplainedItem(
            index=index,
            outcome="change",
            uid=change.uid,
            left_out=mapped.left_out,
            concerned=mapper.concerned(item),
            records=change.records,
        )
    return ExplainedItem(index=index, outcome="filtered", reason=_why_dropped(item, change_filter))


def _why_dropped(item: Item, change_filter: ChangeFilter | None) -> str | None:
    if change_filter is None or not isinstance(item.value, dict):
        return None
    return change_filter.why_dropped(ChangeEvent.from_item(item.value))


def _why_ignored(value: object) -> str:
    if not isinstance(value, dict):
        return f"is {_KINDS.get(type(value), 'a number')}, no event"
    name = value.get("eventName")
    return f"is {name}, no config change" if isinstance(name, str) and name else "has no event name"
