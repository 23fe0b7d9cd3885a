"""Explains what a receiver would do with a request, for `statsig-otel explain`: each item's outcome and its reason.

Nothing is sent, and every decision is made by the receiver's own code: `Intake`, parser, mapper and filter. The items
are decoded once more here, only for their index and the name of their event.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final, Literal, TypeAlias, TypeGuard

from statsig_otel.exporters.consumer import Batch
from statsig_otel.plugin.receiver.answer import Answer, AnsweredError
from statsig_otel.plugin.receiver.bodies import Limits
from statsig_otel.plugin.receiver.intake import Intake
from statsig_otel.plugin.record.change_event import ChangeEvent
from statsig_otel.plugin.record.filter import ChangeFilter
from statsig_otel.plugin.record.mapper import Mapper
from statsig_otel.plugin.record.serializer import AttributeValue
from statsig_otel.plugin.record.services import Concerned
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings, with_resource
from statsig_otel.plugin.webhook import lenient_json
from statsig_otel.plugin.webhook.body import ParsedBody, is_config_change, parse
from statsig_otel.plugin.webhook.lenient_json import Item, Items, Members
from statsig_otel.plugin.webhook.signature import SIGNATURE_HEADER, TIMESTAMP_HEADER, Verifier, sign

Shape: TypeAlias = Literal["url_verification", "event", "batch"]
ItemOutcome: TypeAlias = Literal["change", "filtered", "ignored", "invalid"]

_SIGNED_WITH: Final = "webhook-explained"
_SIGNED_MS: Final = 1_700_000_000_000
"""A secret and a time, to see what a valid signature leads to."""

_KINDS: Final = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}


@dataclass(frozen=True, slots=True)
class SignatureHeaders:
    """The values of the two headers, as sent; None for a missing one."""

    signature: str | None
    timestamp: str | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of checking the signature. The reason is the receiver's, such as `signature_wrong`; None if right."""

    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedItem:
    """One item of a body. Apart from the records it shows only the name of the item's event.

    Attributes:
        outcome: `change`: the item has records. `filtered`: the receiver's filter drops it. `ignored`: it is not a
            config change. `invalid`: it is one, but no record can be made of it.
        reason: The reason for the outcome; None for a change.
        left_out: The optional fields of a change that had an unusable type.
        in_seconds: Whether the time of a change was sent in seconds.
        concerned: The services that a change concerns; None if the receiver has no `impacted_services`.
        records: The records of a change, each a serialised `ExportLogsServiceRequest`.
    """

    index: int
    outcome: ItemOutcome
    reason: str | None = None
    uid: str | None = None
    left_out: tuple[str, ...] = ()
    in_seconds: bool = False
    concerned: Concerned | None = None
    records: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A receiver's decisions on one request.

    Attributes:
        size: Bytes of the body.
        too_large: Whether the body is larger than the receiver accepts.
        verdict: None if the signature was not checked. A receiver checks none of a body that is too large, and of a URL
            verification.
        shape: None for a malformed body.
        problem: What is wrong with a malformed body.
        verification_code: The code of a URL verification, which the answer repeats.
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
        """Whether the body has a known shape, and at least one of its items is not invalid."""
        return self.shape is not None and not (self.items and all(item.outcome == "invalid" for item in self.items))


def explain(
    body: bytes,
    settings: StatsigReceiverSettings,
    *,
    resource: Mapping[str, AttributeValue],
    headers: SignatureHeaders | None,
    at_ns: int,
) -> Explanation:
    """Explain one request. A receiver stops at a wrong signature; the rest is explained nevertheless.

    Args:
        body: The raw body, as sent.
        settings: The receiver's settings.
        resource: The resource attributes of the records, unless the receiver sets them.
        headers: None to skip the check of the signature.
        at_ns: The time of arrival to assume, in nanoseconds since the epoch.
    """
    sent = {} if headers is None else {SIGNATURE_HEADER: headers.signature, TIMESTAMP_HEADER: headers.timestamp}
    answer = _verified(settings.intake(), body, sent, at_ns)
    unread = Explanation(
        size=len(body),
        too_large=_is(answer, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
        verdict=None if headers is None else _verdict(answer),
    )
    match _verified_anyway(body):
        case Answer(body=found):
            return replace(unread, shape="url_verification", verification_code=str(found["verification_code"]))
        case Batch(invalid=(malformed, *_)):
            return replace(unread, problem=malformed.reason)
    shape, decoded = _decode(body.decode())
    mapper = with_resource(settings, resource).mapper()
    change_filter = settings.filter.create() if settings.filter else None
    return replace(unread, shape=shape, items=tuple(_explain_items(parse(body), decoded, mapper, change_filter, at_ns)))


def _verified(intake: Intake, body: bytes, headers: Mapping[str, str | None], at_ns: int) -> Answer | Batch | None:
    """The answer of `Request.verify`, or that of a request that is refused before."""
    sent = [(name.encode(), value.encode(errors="replace")) for name, value in headers.items() if value is not None]
    try:
        request = intake.begin([*sent, (b"Content-Length", b"%d" % len(body))], at_ns)
        with closing(request):
            request.feed(body)
            return request.verify(complete=True)
    except AnsweredError as error:
        return error.answer


def _verified_anyway(body: bytes) -> Answer | Batch | None:
    """The same for a request with a valid signature, of a receiver that has room for the body."""
    size = max(len(body), 1)
    limits = Limits(max_request_body_size=size, max_in_flight_bytes=size)
    intake = Intake(verifier=Verifier([_SIGNED_WITH]), limits=limits)
    return _verified(intake, body, sign(body, secret=_SIGNED_WITH, timestamp_ms=_SIGNED_MS), _SIGNED_MS * 1_000_000)


def _verdict(answer: Answer | Batch | None) -> Verdict | None:
    if _is(answer, HTTPStatus.UNAUTHORIZED):
        return Verdict(answer.reason)
    return None if isinstance(answer, Answer) else Verdict()


def _is(answer: Answer | Batch | None, status: HTTPStatus) -> TypeGuard[Answer]:
    return isinstance(answer, Answer) and answer.status is status


def _decode(text: str) -> tuple[Literal["event", "batch"], Sequence[object]]:
    """The items of a body that `parse` has accepted, also those that it only counts."""
    found: object = lenient_json.split(text, None, names=("data",))
    event = lenient_json.read(text).value
    if isinstance(found, Members):
        found = None if is_config_change(event) else found.last.get("data")
    if isinstance(found, Items):
        return "batch", [lenient_json.read(item.text).value for item in found.kept]
    if isinstance(found, Item):
        inner = lenient_json.read(found.text).value
        event = inner if isinstance(inner, dict) and "eventName" in inner else event
    return "event", [event]


def _explain_items(
    parsed: ParsedBody, decoded: Sequence[object], mapper: Mapper, change_filter: ChangeFilter | None, at_ns: int
) -> Iterator[ExplainedItem]:
    changes = iter(parsed.changes)
    for index, value in enumerate(decoded):
        if is_config_change(value):
            yield _explain_change(index, next(changes), mapper, change_filter, at_ns)
        else:
            yield ExplainedItem(index=index, outcome="ignored", reason=_why_ignored(value))


def _explain_change(
    index: int, item: Item, mapper: Mapper, change_filter: ChangeFilter | None, at_ns: int
) -> ExplainedItem:
    mapped = mapper.map(ParsedBody(1, (item,)), at_ns)
    for invalid in mapped.invalid:
        return ExplainedItem(index=index, outcome="invalid", reason=invalid.reason)
    for change in mapped.changes:
        return ExplainedItem(
            index=index,
            outcome="change",
            uid=change.uid,
            left_out=mapped.left_out,
            in_seconds=bool(mapped.in_seconds),
            concerned=mapper.concerned(item),
            records=change.records,
        )
    return ExplainedItem(index=index, outcome="filtered", reason=_why_dropped(item, change_filter))


def _why_dropped(item: Item, change_filter: ChangeFilter | None) -> str | None:
    if change_filter is None or not isinstance(value := item.value, dict):
        return None
    return change_filter.why_dropped(ChangeEvent.from_item(value))


def _why_ignored(value: object) -> str:
    if not isinstance(value, dict):
        return f"is {_KINDS.get(type(value), 'a number')}, not an event"
    name = value.get("eventName")
    return f"is {name}, not a config change" if isinstance(name, str) and name else "has no event name"
