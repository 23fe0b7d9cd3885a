"""A verified payload as what a consumer takes: encoded records, and the items that no record could be made of."""

from dataclasses import dataclass

from statsig_otel.exporters.consumer import Change, Invalid
from statsig_otel.plugin.change_event import ChangeEvent, InvalidItemError
from statsig_otel.plugin.lenient_json import Item
from statsig_otel.plugin.log_record import LogRecordEncoder, uid
from statsig_otel.plugin.webhook import Payload


@dataclass(frozen=True, slots=True)
class Mapped:
    """What became of the config changes of one payload: each is in exactly one of `changes` and `invalid`.

    Attributes:
        changes: Those that a record was made of, in order.
        invalid: Those that none could be made of.
        ignored: How many items of the payload are no config change.
        left_out: The optional fields that had an unusable type, one entry for each time.
    """

    changes: tuple[Change, ...]
    invalid: tuple[Invalid, ...]
    ignored: int
    left_out: tuple[str, ...]


class Mapper:
    """Maps payloads with one encoder. Does no I/O, reads no clock, never raises for anything that a payload holds."""

    def __init__(self, encoder: LogRecordEncoder | None = None) -> None:
        self._encoder = encoder or LogRecordEncoder()

    def map(self, payload: Payload, observed_ns: int) -> Mapped:
        """Map all config changes of a payload.

        Args:
            payload: The parsed body.
            observed_ns: When its request arrived, in nanoseconds since the epoch.
        """
        changes: list[Change] = []
        invalid: list[Invalid] = []
        left_out: list[str] = []
        for item in payload.changes:
            try:
                change, fields = self._map_item(item, observed_ns)
            except InvalidItemError as error:
                invalid.append(Invalid(item.text.encode(), str(error)))
            else:
                changes.append(change)
                left_out.extend(fields)
        return Mapped(tuple(changes), tuple(invalid), payload.ignored, tuple(left_out))

    def _map_item(self, item: Item, observed_ns: int) -> tuple[Change, tuple[str, ...]]:
        if item.problem is not None or not isinstance(item.value, dict):
            raise InvalidItemError(item.problem or "is no object")
        item_uid = uid(item.value)
        event = ChangeEvent.from_item(item.value)
        record = self._encoder.encode(event, uid=item_uid, observed_ns=observed_ns, original=item.text)
        return Change(item_uid, (record,)), event.left_out
