"""Makes records of entries of the audit log: of changes that no webhook brought, and of old and new values.

Pure functions, without I/O. The log has neither environments, projects, tags nor target apps, and of many entries
neither type nor action. So a filter drops a change only if it would do so whatever these are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from statsig_otel import _attributes
from statsig_otel.exporters.arrival import Arrival
from statsig_otel.exporters.consumer import Batch, Change
from statsig_otel.plugin.audit_log.entries import AuditEntry, type_and_action
from statsig_otel.plugin.record.change_event import ChangeEvent, InvalidItemError
from statsig_otel.plugin.record.filter import Block, ChangeFilter
from statsig_otel.plugin.record.record import LogRecordEncoder, RecordFields, RecordHook
from statsig_otel.plugin.record.serializer import AttributeValue
from statsig_otel.plugin.record.services import ImpactedServices

DETAILS: Final = "statsig.config_change.details"
"""The EventName of a record with old and new values."""

_UNKNOWN: Final = frozenset({"environments", "projects", "tags", "target_apps"})
"""The fields of a filter that no entry has."""

_ALSO: Final[Mapping[str, Sequence[str]]] = {"Gate": ("Feature Gate",)}
"""Other types that webhooks may have for the same things, as a filter tells them apart."""

_NO_ITEM: Final[Mapping[str, object]] = {}


class OnlyAttributes:
    """A mapping that changes the attributes of a record and nothing else.

    Args:
        mapping: The user's mapping; None for none.
    """

    def __init__(self, mapping: RecordHook | None) -> None:
        self._mapping = mapping

    def apply(self, record: RecordFields, event: ChangeEvent, item: Mapping[str, object]) -> RecordFields:
        """See `RecordHook`."""
        if self._mapping is None:
            return record
        return replace(record, attributes=self._mapping.apply(record, event, item).attributes)


@dataclass(frozen=True, slots=True)
class LogRecords:
    """Makes the records, as one receiver is configured.

    Attributes:
        encoder: Makes the records of changes.
        details_encoder: Makes those with old and new values.
        include: The blocks of the filter's `include`.
        exclude: Those of its `exclude`.
        services: Finds the services that a change concerns.
    """

    encoder: LogRecordEncoder
    details_encoder: LogRecordEncoder
    include: Sequence[Block] = ()
    exclude: Sequence[Block] = ()
    services: ImpactedServices | None = None

    def change(self, receiver: str, entry: AuditEntry, *, observed_ns: int) -> Batch:
        """The batch of an entry that no webhook brought. It has no change if the filter drops that.

        Args:
            receiver: The receiver's id.
            entry: The entry.
            observed_ns: The time now, in nanoseconds since the epoch.

        Raises:
            InvalidItemError: A record of it is too large, also without old and new values.
        """
        event = _event(entry)
        is_dropped = self._drops(event)
        arrival = replace(_arrival(entry, entry.uid), filtered=is_dropped)
        if is_dropped:
            return Batch(receiver, arrivals=(arrival,))
        try:
            records = self._records(event, entry, observed_ns)
        except InvalidItemError:
            if not entry.old and not entry.new:
                raise
            records = self._records(event, _without_values(entry), observed_ns)
        return Batch(receiver, (Change(entry.uid, records),), arrivals=(arrival,))

    def details(self, receiver: str, entry: AuditEntry, uid: str, *, observed_ns: int) -> Batch:
        """The batch with the old and new values of an entry that a webhook brought.

        Args:
            receiver: The receiver's id.
            entry: The entry.
            uid: The uid of the change.
            observed_ns: The time now, in nanoseconds since the epoch.

        Raises:
            InvalidItemError: The record is too large, also without old and new values.
        """
        event = _event(entry)

        def encoded(shown: AuditEntry) -> bytes:
            attributes: dict[str, AttributeValue] = {
                _attributes.UID: entry.details_uid,
                _attributes.CHANGE_UID: uid,
                _attributes.FLAG_KEY: entry.name,
                _attributes.FLAG_PROVIDER: "statsig",
                **_from_log(shown),
            }
            default = RecordFields(event_name=DETAILS, body=f"{entry.name}: old and new values", attributes=attributes)
            return self.details_encoder.encode(default, event, observed_ns=observed_ns)

        try:
            record = encoded(entry)
        except InvalidItemError:
            record = encoded(_without_values(entry))
        change = Change(entry.details_uid, (record,))
        return Batch(receiver, (change,), arrivals=(_arrival(entry, entry.details_uid),))

    def _records(self, event: ChangeEvent, entry: AuditEntry, observed_ns: int) -> tuple[bytes, ...]:
        default = self.encoder.default(event, uid=entry.uid, original="")
        attributes = {**default.attributes, **_from_log(entry)}
        if not event.entity_type:
            del attributes[_attributes.TYPE]
        default = replace(default, attributes=attributes)
        each = [default]
        if self.services is not None:
            each = self.services.records(default, event, original="", item=_NO_ITEM)
        return tuple(self.encoder.encode(one, event, observed_ns=observed_ns) for one in each)

    def _drops(self, event: ChangeEvent) -> bool:
        unknown = {*_UNKNOWN, *([] if event.entity_type else ["types"]), *([] if event.action else ["actions"])}
        include = [{name: patterns for name, patterns in one.items() if name not in unknown} for one in self.include]
        known = ChangeFilter(
            include=include if all(include) else (), exclude=[one for one in self.exclude if not unknown & one.keys()]
        )
        spellings = [event, *(replace(event, entity_type=one) for one in _ALSO.get(event.entity_type, ()))]
        return all(known.why_dropped(one) is not None for one in spellings)


def _event(entry: AuditEntry) -> ChangeEvent:
    type_, action = type_and_action(entry.action_type)
    return ChangeEvent(
        happened_at=entry.second * 1000,
        entity_type=type_ or "",
        name=entry.name,
        action=action,
        description=entry.text or None,
        user_id=entry.user_id,
        user_name=entry.user_name,
        user_email=entry.user_email,
    )


def _arrival(entry: AuditEntry, uid: str) -> Arrival:
    return Arrival(
        uid,
        entry.second,
        entry.name,
        entry.user_id,
        entry.user_name,
        entry.user_email,
        text=entry.text,
        from_log=True,
    )


def _from_log(entry: AuditEntry) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        _attributes.ORIGIN: "audit_log",
        _attributes.LOG_ID: entry.id,
        _attributes.LOG_ACTION_TYPE: entry.action_type,
        _attributes.LOG_OLD: entry.old,
        _attributes.LOG_NEW: entry.new,
        _attributes.LOG_SIZE: entry.size,
    }
    return {name: value for name, value in attributes.items() if value}


def _without_values(entry: AuditEntry) -> AuditEntry:
    return replace(entry, old="", new="", size=len(entry.old.encode()) + len(entry.new.encode()) or entry.size)
