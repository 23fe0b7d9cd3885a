"""Maps a parsed body to encoded records, and keeps the items that no record can be made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType
from typing import NamedTuple

from statsig_otel._arguments import check_type
from statsig_otel.exporters.arrival import Arrival, comparable
from statsig_otel.exporters.consumer import Change, Invalid
from statsig_otel.plugin.record.change_event import ChangeEvent, InvalidItemError
from statsig_otel.plugin.record.filter import ChangeFilter
from statsig_otel.plugin.record.record import LogRecordEncoder, RecordFields, uid
from statsig_otel.plugin.record.services import Concerned, ImpactedServices
from statsig_otel.plugin.webhook.body import ParsedBody
from statsig_otel.plugin.webhook.lenient_json import Item


@dataclass(frozen=True, slots=True)
class Mapped:
    """The items of one body after mapping: each is in `changes`, in `invalid`, or counted in `ignored`.

    Attributes:
        changes: The config changes that have records, in order.
        invalid: The config changes that no record could be made of.
        ignored: The number of items that are not config changes, or that the filter drops.
        left_out: The optional fields that had an unusable type, with one entry for each time.
        in_seconds: The number of changes whose time was sent in seconds.
        arrivals: What to remember of each config change that could be read, also of those that the filter drops; empty
            unless the mapper `remembers`.

    Example:
        >>> from statsig_otel.plugin import Mapped, Mapper, ParsedBody
        >>> def records_of(mapped: Mapped) -> list[bytes]:
        ...     return [record for change in mapped.changes for record in change.records]
        >>> records_of(Mapper().map(ParsedBody(0, ()), observed_ns=1739400185198000000))
        []
    """

    changes: tuple[Change, ...]
    invalid: tuple[Invalid, ...]
    ignored: int
    left_out: tuple[str, ...]
    in_seconds: int = 0
    arrivals: tuple[Arrival, ...] = ()


class Mapper:
    """Maps parsed bodies. Does no I/O, reads no clock, and never raises because of what a body contains.

    Args:
        encoder: Makes the records; by default the default records.
        change_filter: Decides which changes pass; by default all.
        services: Finds the services that a change concerns; without it each change has one record.
            `StatsigReceiverSettings.mapper` makes a mapper with a filter and services.
        remembers: Whether to make `arrivals`, which a queue remembers to compare them with the audit log.

    Raises:
        TypeError: An argument has another type.

    Example:
        >>> from statsig_otel.plugin import Mapper, parse
        >>> body = b'{"eventName": "statsig::config_change", "timestamp": 1, "metadata": {"type": "Gate"}}'
        >>> mapped = Mapper().map(parse(body), observed_ns=1739400185198000000)
        >>> [invalid.reason for invalid in mapped.invalid]
        ['metadata.name: must be a string that is not empty, is missing or null']
    """

    def __init__(
        self,
        encoder: LogRecordEncoder | None = None,
        change_filter: ChangeFilter | None = None,
        services: ImpactedServices | None = None,
        *,
        remembers: bool = False,
    ) -> None:
        self._encoder = LogRecordEncoder() if encoder is None else encoder
        check_type("encoder", self._encoder, LogRecordEncoder)
        check_type("change_filter", change_filter, (ChangeFilter, NoneType), "a ChangeFilter or None")
        check_type("services", services, (ImpactedServices, NoneType), "an ImpactedServices or None")
        self._filter = change_filter
        self._services = services
        self._remembers = remembers

    def map(self, parsed: ParsedBody, observed_ns: int) -> Mapped:
        """Map all config changes of a body.

        Args:
            parsed: The parsed body.
            observed_ns: When the request arrived, in nanoseconds since the epoch.

        Raises:
            TypeError: An argument has another type, such as a body that was not parsed.
        """
        check_type("parsed", parsed, ParsedBody, hint="parse(body) makes one")
        check_type("observed_ns", observed_ns, int)
        changes: list[Change] = []
        invalid: list[Invalid] = []
        left_out: list[str] = []
        arrivals: list[Arrival] | None = [] if self._remembers else None
        in_seconds = 0
        ignored = parsed.ignored
        for item in parsed.changes:
            try:
                read = self._read(item, arrivals)
                if read is None:
                    ignored += 1
                    continue
                changes.append(self._encode(read, item.text, observed_ns))
            except InvalidItemError as error:
                invalid.append(Invalid(item.text.encode(), str(error)))
                continue
            left_out.extend(read.event.left_out)
            in_seconds += read.event.in_seconds
        return Mapped(
            tuple(changes), tuple(invalid), ignored, tuple(left_out), in_seconds, tuple(arrivals) if arrivals else ()
        )

    def concerned(self, item: Item) -> Concerned | None:
        """The services that a change concerns; None if there are no rules.

        Args:
            item: An item that `map` makes a record of.

        Raises:
            TypeError: It is not one of the items of a body.
        """
        check_type("item", item, Item, "one of a ParsedBody's changes")
        if self._services is None:
            return None
        read = self._read(item)
        if read is None:
            return None
        return self._services.find(read.default, read.event, original=item.text, item=read.item)

    def _read(self, item: Item, arrivals: list[Arrival] | None = None) -> "_ReadItem | None":
        """Read an item, without its services and the mapping; None if the filter drops it. Adds it to `arrivals`.

        Raises:
            InvalidItemError: No record can be made of it.
        """
        value, problem = item.decoded()
        if problem is not None or not isinstance(value, dict):
            raise InvalidItemError(problem or "is not an object")
        item_uid = uid(value)
        event = ChangeEvent.from_item(value)
        is_dropped = self._filter is not None and self._filter.why_dropped(event) is not None
        if arrivals is not None:
            arrivals.append(_arrival(event, item_uid, filtered=is_dropped))
        if is_dropped:
            return None
        default = self._encoder.default(event, uid=item_uid, original=item.text)
        return _ReadItem(item_uid, value, event, default)

    def _encode(self, read: "_ReadItem", original: str, observed_ns: int) -> Change:
        """Encode the records of an item: one for each service, or a single one."""
        uid, item, event, default = read
        records = [default]
        if self._services is not None:
            records = self._services.records(default, event, original=original, item=item)
        encoded = [self._encoder.encode(record, event, observed_ns=observed_ns, item=item) for record in records]
        return Change(uid, tuple(encoded))


def _arrival(event: ChangeEvent, uid: str, *, filtered: bool) -> Arrival:
    """What to remember of a change. Its name and its description are only compared, so they may be cut."""
    return Arrival(
        uid,
        event.happened_at // 1000,
        comparable(event.name),
        event.user_id,
        event.user_name,
        event.user_email,
        comparable(event.entity_type),
        comparable(event.action or ""),
        comparable(event.description or ""),
        filtered,
    )


class _ReadItem(NamedTuple):
    """An item that the filter lets pass, decoded, with what is made of it."""

    uid: str
    item: Mapping[str, object]
    event: ChangeEvent
    default: RecordFields
