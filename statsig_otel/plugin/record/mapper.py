"""A verified payload as what a consumer takes: encoded records, and the items that no record could be made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from statsig_otel.exporters.consumer import Change, Invalid
from statsig_otel.plugin.record.change_event import ChangeEvent, InvalidItemError
from statsig_otel.plugin.record.filter import ChangeFilter
from statsig_otel.plugin.record.record import LogRecordEncoder, RecordFields, uid
from statsig_otel.plugin.record.services import Concerned, ImpactedServices
from statsig_otel.plugin.webhook.lenient_json import Item
from statsig_otel.plugin.webhook.payload import Payload


@dataclass(frozen=True, slots=True)
class Mapped:
    """What became of the config changes of one payload: each is in `changes`, in `invalid`, or ignored.

    Attributes:
        changes: Those that a record was made of, in order.
        invalid: Those that none could be made of.
        ignored: How many items of the payload are no config change, or one that the filter drops.
        left_out: The optional fields that had an unusable type, one entry for each time.

    Example:
        >>> from statsig_otel.plugin import Mapper, parse
        >>> mapped = Mapper().map(parse(b'[{"eventName": "statsig::gate_exposure"}]'), observed_ns=0)
        >>> (mapped.changes, mapped.ignored)
        ((), 1)
    """

    changes: tuple[Change, ...]
    invalid: tuple[Invalid, ...]
    ignored: int
    left_out: tuple[str, ...]


class Mapper:
    """Maps payloads. Does no I/O, reads no clock, never raises for anything that a payload holds.

    Args:
        encoder: Makes the records; the default ones without it.
        change_filter: Tells which changes one is made of; all without it.
        services: Finds the services that a change concerns; without it each change has one record.

    Example:
        >>> from statsig_otel.plugin import Mapper, parse
        >>> body = b'{"eventName": "statsig::config_change", "timestamp": 1, "metadata": {"type": "Gate"}}'
        >>> mapped = Mapper().map(parse(body), observed_ns=1739400185198000000)
        >>> [invalid.reason for invalid in mapped.invalid]
        ['metadata.name: must be a text that is not empty, is missing or null']
    """

    def __init__(
        self,
        encoder: LogRecordEncoder | None = None,
        change_filter: ChangeFilter | None = None,
        services: ImpactedServices | None = None,
    ) -> None:
        self._encoder = encoder or LogRecordEncoder()
        self._filter = change_filter
        self._services = services

    def map(self, payload: Payload, observed_ns: int) -> Mapped:
        """Map all config changes of a payload.

        Args:
            payload: The parsed body.
            observed_ns: When its request arrived, in nanoseconds since the epoch.
        """
        changes: list[Change] = []
        invalid: list[Invalid] = []
        left_out: list[str] = []
        ignored = payload.ignored
        for item in payload.changes:
            try:
                mapped = self._map_item(item, observed_ns)
            except InvalidItemError as error:
                invalid.append(Invalid(item.text.encode(), str(error)))
                continue
            if mapped is None:
                ignored += 1
                continue
            change, fields = mapped
            changes.append(change)
            left_out.extend(fields)
        return Mapped(tuple(changes), tuple(invalid), ignored, tuple(left_out))

    def concerned(self, item: Item) -> Concerned | None:
        """What the rules say of the services of a change; None if there are no rules.

        Args:
            item: An item that `map` makes a record of.
        """
        if self._services is None:
            return None
        change = self._read(item)
        if change is None:
            return None
        return self._services.find(change.default, change.event, original=item.text, item=change.item)

    def _map_item(self, item: Item, observed_ns: int) -> tuple[Change, tuple[str, ...]] | None:
        """One item's change and the fields that were left out of it; None where the filter drops it."""
        change = self._read(item)
        if change is None:
            return None
        event, records = change.event, [change.default]
        if self._services is not None:
            records = self._services.records(change.default, event, original=item.text, item=change.item)
        encoded = [self._encoder.encode(one, event, observed_ns=observed_ns, item=change.item) for one in records]
        return Change(change.uid, tuple(encoded)), event.left_out

    def _read(self, item: Item) -> "_ChangeItem | None":
        """An item before its services and the mapping; None where the filter drops it.

        Raises:
            InvalidItemError: No record can be made of it.
        """
        if item.problem is not None or not isinstance(item.value, dict):
            raise InvalidItemError(item.problem or "is no object")
        item_uid = uid(item.value)
        event = ChangeEvent.from_item(item.value)
        if self._filter is not None and self._filter.why_dropped(event) is not None:
            return None
        default = self._encoder.default(event, uid=item_uid, original=item.text)
        return _ChangeItem(item_uid, item.value, event, default)


class _ChangeItem(NamedTuple):
    """An item that the filter lets pass.

    Attributes:
        uid: Its uid.
        item: The item, decoded.
        event: What the item says.
        default: The default record of it.
    """

    uid: str
    item: Mapping[str, object]
    event: ChangeEvent
    default: RecordFields
