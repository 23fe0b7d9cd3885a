"""Finds the services that a change concerns, by a user's rules, and makes a default record for each of them.

A backend joins telemetry by `service.name` and `service.namespace` of the resource. So a change that concerns services
becomes a record for each service, with its own resource and uid; or a single record with the list as an attribute.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Final

from statsig_otel import _attributes
from statsig_otel.plugin.record.arrays import converted, cut, hidden, joined
from statsig_otel.plugin.record.change_event import ChangeEvent
from statsig_otel.plugin.record.filter import Block, ChangeFilter
from statsig_otel.plugin.record.mapping import SERVICE_FIELDS, Source, fields_of, parse_template, texts_of
from statsig_otel.plugin.record.record import RecordFields
from statsig_otel.plugin.record.serializer import AttributeValue
from statsig_otel.plugin.record.template import FieldsOf, Template, TemplateError

MAX_RECORDS: Final = 100
"""The most records of one change. A change that concerns more services becomes one record with the list."""

MAX_CHARACTERS: Final = 8_000_000
"""The most characters of a change as it was sent, times its records. Above it the change becomes one record with the
list, so that a long description is not in memory a hundred times."""


@dataclass(frozen=True, slots=True, order=True)
class ImpactedService:
    """A service that a change concerns. An empty namespace is none, as in the semantic conventions."""

    name: str
    namespace: str = ""

    def __str__(self) -> str:
        """NAMESPACE/NAME, as OpenTelemetry writes the two for Prometheus, or NAME alone."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    @property
    def attributes(self) -> dict[str, str]:
        """The attributes of the service's resource."""
        name, namespace = SERVICE_FIELDS
        return {name: self.name, namespace: self.namespace} if self.namespace else {name: self.name}


def service_uid(change_uid: str, service: ImpactedService) -> str:
    """The `log.record.uid` of the record of a change for one of its services.

    The first half of SHA-256 over `statsig-otel/1/service`, a line feed, the change's uid, a line feed and the JSON
    array of namespace and name, without spaces, with ASCII escapes. It depends neither on the other services nor on
    the rule that found this one. A change of this definition is a major version.
    """
    pair = json.dumps([service.namespace, service.name], separators=(",", ":"), ensure_ascii=True)
    return sha256(f"statsig-otel/1/service\n{change_uid}\n{pair}".encode("ascii")).hexdigest()[:32]


def parse_service_template(text: str) -> Template:
    """Parse a template for the name or the namespace of a service.

    Raises:
        TemplateError: See `parse_template`. Or the template has a field that depends on the services.
    """
    template = parse_template(text)
    for name in template.names:
        if name in (*SERVICE_FIELDS, _attributes.IMPACTED_SERVICES, _attributes.CHANGE_UID):
            hint = "name a field of the change itself, such as {name} or {tags}"
            raise TemplateError(f"has {{{name}}}, which depends on the services", hint)
    return template


@dataclass(frozen=True, slots=True)
class ServiceRule:
    """A rule that finds services of the changes which it matches.

    Attributes:
        names: The names of the services. An array gives a service for each element, an absent value gives none.
        namespace: The namespace of the services; None for none.
        match: The rule matches a change if one of these blocks does, or if there is no block.
    """

    names: Source
    namespace: Template | None = None
    match: Sequence[Block] = ()

    def services(self, fields: FieldsOf) -> tuple[ImpactedService, ...]:
        """The services of a change that this rule matches."""
        namespace = (self.namespace and self.namespace.text(fields)) or ""
        names = texts_of(self.names.value(fields))
        services = tuple(ImpactedService(name.strip(), namespace.strip()) for name in names if name.strip())
        return cut(services, hidden(names))


@dataclass(frozen=True, slots=True)
class Found:
    """A service that a change concerns, with the indexes of the rules that found it."""

    service: ImpactedService
    rules: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Concerned:
    """The services that a change concerns.

    Attributes:
        found: The services, in the order of the rules and of what each finds.
        split: Whether there is a record for each service.
        too_many: Whether there is only one record because the services are too many.
    """

    found: tuple[Found, ...]
    split: bool
    too_many: bool


class ImpactedServices:
    """Finds the services of changes, and makes a default record for each. Safe to use from several threads.

    Args:
        rules: The rules, in order. A service that several rules find is one service.
        first_match: Stop at the first rule that finds a service. Otherwise all rules count.
        split: True for a record for each service, False for one record with the list.
    """

    def __init__(self, rules: Sequence[ServiceRule], *, first_match: bool = False, split: bool = True) -> None:
        self._rules = [(ChangeFilter(include=rule.match), rule) for rule in rules]
        self._first_match = first_match
        self._split = split

    def find(
        self, default: RecordFields, event: ChangeEvent, *, original: str, item: Mapping[str, object]
    ) -> Concerned:
        """Find the services of a change. Never raises.

        The result depends only on the change and the rules, so every delivery of a change gives the same records.

        Args:
            default: The record that `LogRecordEncoder.default` makes of the change.
            event: The change event.
            original: The item's own JSON text.
            item: The item, decoded.
        """
        fields = fields_of(default, event, item)
        found: dict[ImpactedService, dict[int, None]] = {}
        more = 0
        for index, (change_filter, rule) in enumerate(self._rules):
            if self._first_match and found:
                break
            if change_filter.why_dropped(event) is None:
                services = rule.services(fields)
                more += hidden(services)
                for service in services:
                    found.setdefault(service, {})[index] = None
        too_many = (
            self._split and len(found) > 1 and (len(found) > MAX_RECORDS or len(found) * len(original) > MAX_CHARACTERS)
        )
        return Concerned(
            joined([cut(tuple(Found(service, tuple(rules)) for service, rules in found.items()), more)]),
            split=self._split and bool(found) and not too_many,
            too_many=too_many,
        )

    def records(
        self, default: RecordFields, event: ChangeEvent, *, original: str, item: Mapping[str, object]
    ) -> list[RecordFields]:
        """The default records of a change: one for each of its services, or a single one, which lists them.

        For the arguments see `find`.
        """
        concerned = self.find(default, event, original=original, item=item)
        services = converted(concerned.found, lambda one: one.service)
        if concerned.split:
            return [_of_service(default, service) for service in services]
        if services:
            return [_with(default, {_attributes.IMPACTED_SERVICES: converted(services, str)})]
        return [default]


def _of_service(default: RecordFields, service: ImpactedService) -> RecordFields:
    """The default record of a change for one of its services."""
    uid = str(default.attributes[_attributes.UID])
    own = {
        _attributes.UID: service_uid(uid, service),
        _attributes.CHANGE_UID: uid,
        _attributes.IMPACTED_SERVICES: [str(service)],
    }
    return replace(_with(default, own), service=service.attributes)


def _with(record: RecordFields, attributes: Mapping[str, AttributeValue]) -> RecordFields:
    return replace(record, attributes={**record.attributes, **attributes})
