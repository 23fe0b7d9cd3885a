"""A verified payload as what a consumer takes: encoded records, and the items that no record could be made of."""

from dataclasses import dataclass

from statsig_otel.exporters.consumer import Change, Invalid
from statsig_otel.plugin.change_event import ChangeEvent, InvalidItemError
from statsig_otel.plugin.filter import ChangeFilter
from statsig_otel.plugin.lenient_json import Item
from statsig_otel.plugin.log_record import LogRecordEncoder, uid
from statsig_otel.plugin.webhook import Payload


@dataclass(frozen=True, slots=True)
class Mapped:
    """What became of the config changes of one payload: each is in `changes`, in `invalid`, or ignored.

    Attributes:
        changes: Those that a record was made of, in order.
        invalid: Those that none could be made of.
        ignored: How many items of the payload are no config change, or one that the filter drops.
        left_out: The optional fields that had an unusable type, one entry for each time.
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
    """

    def __init__(self, encoder: LogRecordEncoder | None = None, change_filter: ChangeFilter | None = None) -> None:
        self._encoder = encoder or LogRecordEncoder()
        self._filter = change_filter

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

    def _map_item(self, item: Item, observed_ns: int) -> tuple[Change, tuple[str, ...]] | None:
        """One item's change and the fields that were left out of it; None where the filter drops it."""
        if item.problem is not None or not isinstance(item.value, dict):
            raise InvalidItemError(item.problem or "is no object")
        item_uid = uid(item.value)
        event = ChangeEvent.from_item(item.value)
        if self._filter is not None and self._filter.why_dropped(event) is not None:
            return None
        record = self._encoder.encode(event, uid=item_uid, observed_ns=observed_ns, original=item.text, item=item.value)
        return Change(item_uid, (record,)), event.left_out
