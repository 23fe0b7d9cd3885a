"""Which services a change concerns: rules over what it says of itself, and the records that follow from them.

A backend joins telemetry by `service.name` and `service.namespace` of the resource. So a change that concerns services
becomes a record for each, with a resource and a uid of its own; or one record that has the list as an attribute.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Final

from statsig_otel.plugin.record.change_event import ChangeEvent
from statsig_otel.plugin.record.filter import Block, ChangeFilter
from statsig_otel.plugin.record.mapping import SERVICE_FIELDS, UID, Source, fields_of, parse_template, texts_of
from statsig_otel.plugin.record.otlp import AttributeValue
from statsig_otel.plugin.record.record import RecordFields
from statsig_otel.plugin.record.template import FieldsOf, Template, TemplateError

IMPACTED_SERVICES: Final = "statsig.impacted_services"
CHANGE_UID: Final = "statsig.config_change.uid"

MAX_RECORDS: Final = 100
"""Records of one change. Of more services than this a change becomes one record, with the list."""

MAX_CHARACTERS: Final = 8_000_000
"""Of a change's text, as it was sent, times its records, likewise: a long description is not to be held a hundred
times."""


@dataclass(frozen=True, slots=True, order=True)
class ImpactedService:
    """A service that a change concerns.

    Attributes:
        name: Its `service.name`.
        namespace: Its `service.namespace`; empty for none, which the semantic conventions take for the same.
    """

    name: str
    namespace: str = ""

    def __str__(self) -> str:
        """NAMESPACE/NAME, as OpenTelemetry writes the two for Prometheus, or NAME alone."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    @property
    def attributes(self) -> dict[str, str]:
        """What a resource says of it."""
        name, namespace = SERVICE_FIELDS
        return {name: self.name, namespace: self.namespace} if self.namespace else {name: self.name}


def service_uid(change_uid: str, service: ImpactedService) -> str:
    """The `log.record.uid` of the record that a change has for one of its services.

    The first half of SHA-256 over `statsig-otel/1/service`, a line feed, the change's uid, a line feed and the JSON
    array of namespace and name, without blanks, with ASCII escapes. Which other services there are, and which rule
    found this one, does not go in. A change of this rule is a major version.
    """
    pair = json.dumps([service.namespace, service.name], separators=(",", ":"), ensure_ascii=True)
    return sha256(f"statsig-otel/1/service\n{change_uid}\n{pair}".encode("ascii")).hexdigest()[:32]


def parse_service_template(text: str) -> Template:
    """Read a template of a service's name or namespace.

    Raises:
        TemplateError: As `parse_template`; or it has a field that only the finished record has.
    """
    template = parse_template(text)
    for name in template.names:
        if name in (*SERVICE_FIELDS, IMPACTED_SERVICES, CHANGE_UID):
            raise TemplateError(f"has {{{name}}}, which is not known before the services are")
    return template


@dataclass(frozen=True, slots=True)
class ServiceRule:
    """A rule: the services of the changes that it matches.

    Attributes:
        names: Their names. What is an array gives a service for each of its elements, what is absent gives none.
        namespace: Their namespace; None for none.
        match: The changes: those that one of these blocks matches; all where there is none.
    """

    names: Source
    namespace: Template | None = None
    match: Sequence[Block] = ()

    def services(self, fields: FieldsOf) -> Iterator[ImpactedService]:
        """The services of a change that the rule matches."""
        namespace = (self.namespace and self.namespace.text(fields)) or ""
        for name in texts_of([self.names.value(fields)]):
            if name.strip():
                yield ImpactedService(name.strip(), namespace.strip())


@dataclass(frozen=True, slots=True)
class Found:
    """A service that rules found for a change.

    Attributes:
        service: The service.
        rules: The places of those rules, from 0.
    """

    service: ImpactedService
    rules: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Concerned:
    """What the rules say of a change.

    Attributes:
        found: The services that it concerns, in the order of the rules and of what they find.
        split: Whether it has a record for each of them.
        too_many: Whether it has one record only because there are too many of them.
    """

    found: tuple[Found, ...]
    split: bool
    too_many: bool


class ImpactedServices:
    """Finds the services of changes, and makes a default record for each. Safe to use from several threads.

    Args:
        rules: The rules. All that match count; a service that several find is one.
        split: True for a record for each service, False for one record with all of them.
    """

    def __init__(self, rules: Sequence[ServiceRule], *, split: bool = True) -> None:
        self._rules = [(ChangeFilter(include=rule.match), rule) for rule in rules]
        self._split = split

    def find(
        self, default: RecordFields, event: ChangeEvent, *, original: str, item: Mapping[str, object]
    ) -> Concerned:
        """Find the services of a change. Never raises.

        Nothing but the change and the rules counts, so that every delivery of a change gives the same records.

        Args:
            default: The record that `LogRecordEncoder.default` makes of the change.
            event: The change.
            original: The item's own JSON text.
            item: The item.
        """
        fields = fields_of(default, event, item)
        found: dict[ImpactedService, dict[int, None]] = {}
        for index, (change_filter, rule) in enumerate(self._rules):
            if change_filter.why_dropped(event) is None:
                for service in rule.services(fields):
                    found.setdefault(service, {})[index] = None
        too_many = (
            self._split and len(found) > 1 and (len(found) > MAX_RECORDS or len(found) * len(original) > MAX_CHARACTERS)
        )
        return Concerned(
            tuple(Found(service, tuple(rules)) for service, rules in found.items()),
            split=self._split and bool(found) and not too_many,
            too_many=too_many,
        )

    def records(
        self, default: RecordFields, event: ChangeEvent, *, original: str, item: Mapping[str, object]
    ) -> list[RecordFields]:
        """The default records of a change: one for each of its services, or a single one. For the arguments see `find`.

        A single one lists the services, if there are any.
        """
        concerned = self.find(default, event, original=original, item=item)
        services = [one.service for one in concerned.found]
        if concerned.split:
            return [_of_service(default, service) for service in services]
        if services:
            return [_with(default, {IMPACTED_SERVICES: _texts(services)})]
        return [default]


def _of_service(default: RecordFields, service: ImpactedService) -> RecordFields:
    """The default record of a change for one of its services."""
    uid = str(default.attributes[UID])
    own = {UID: service_uid(uid, service), CHANGE_UID: uid, IMPACTED_SERVICES: _texts([service])}
    return replace(_with(default, own), service=service.attributes)


def _with(record: RecordFields, attributes: Mapping[str, AttributeValue]) -> RecordFields:
    return replace(record, attributes={**record.attributes, **attributes})


def _texts(services: Sequence[ImpactedService]) -> list[str]:
    return list(map(str, services))
