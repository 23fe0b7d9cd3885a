"""Which keys of a receiver the fields of its templates need: one that no change can ever have is a mistake."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeAlias

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from statsig_otel.plugin.record.mapping import SERVICE_FIELDS, parse_template
from statsig_otel.plugin.record.services import CHANGE_UID, IMPACTED_SERVICES
from statsig_otel.plugin.settings.mapping import LookupSettings, MappingSettings
from statsig_otel.plugin.settings.services import ImpactedServicesSettings

_Placed: TypeAlias = tuple[tuple[str | int, ...], str]
"""A template, after its place."""

_DETAILS: Final = "statsig.change."
_ORIGINAL: Final = "log.record.original"


def check_fields(
    mapping: MappingSettings | None, services: ImpactedServicesSettings | None, *, details: bool, original: bool
) -> None:
    """Check that each field in the templates of a receiver is one that a change can have.

    Args:
        mapping: Its `mapping`.
        services: Its `impacted_services`.
        details: Its `include_change_details`.
        original: Its `include_original`.

    Raises:
        ValidationError: A change can't have some; each is told in its place, with the key to set.
    """

    def problem(name: str) -> str | None:
        if name.startswith(_DETAILS) and not details:
            return "without include_change_details\nhint: set include_change_details: true"
        if name == _ORIGINAL and not original:
            return "without include_original\nhint: set include_original: true"
        if name in (*SERVICE_FIELDS, CHANGE_UID, IMPACTED_SERVICES) and services is None:
            return "without impacted_services\nhint: add rules to impacted_services"
        if name in (*SERVICE_FIELDS, CHANGE_UID) and not (services and services.split):
            return "with impacted_services::split: false\nhint: set split: true there"
        return None

    templates = [
        *_below("mapping", _of_mapping(mapping) if mapping else ()),
        *_below("impacted_services", _of_services(services) if services else ()),
    ]
    errors = list(_errors(templates, problem))
    if errors:
        raise ValidationError.from_exception_data("StatsigReceiverSettings", errors)


def _errors(templates: Iterable[_Placed], problem: Callable[[str], str | None]) -> Iterator[InitErrorDetails]:
    for place, text in templates:
        for name in parse_template(text).names:
            if why := problem(name):
                error = ValueError(f"has {{{name}}}, which no change has {why}")
                kind = PydanticCustomError("value_error", "Value error, {error}", {"error": error})
                yield InitErrorDetails(type=kind, loc=place, input=text)
                break


def _below(key: str | int, templates: Iterable[_Placed]) -> Iterator[_Placed]:
    return (((key, *place), text) for place, text in templates)


def _of_mapping(mapping: MappingSettings) -> Iterator[_Placed]:
    for key in ("event_name", "body"):
        if text := getattr(mapping, key):
            yield (key,), text
    for name, written in mapping.attributes.items():
        yield from _below("attributes", _below(name, _of_value(written)))


def _of_services(services: ImpactedServicesSettings) -> Iterator[_Placed]:
    if services.namespace is not None:
        yield ("namespace",), services.namespace
    is_list = isinstance(services.rules, list)
    for index, rule in enumerate(services.rules if isinstance(services.rules, list) else [services.rules]):
        found = list(_below("name", _of_value(rule.name)))
        if rule.namespace is not None:
            found.append((("namespace",), rule.namespace))
        yield from _below("rules", _below(index, found) if is_list else found)


def _of_value(written: str | float | Sequence[str | float] | LookupSettings) -> Iterator[_Placed]:
    """The templates of what an attribute, or a name, is made of."""
    if isinstance(written, str):
        yield (), written
    elif isinstance(written, LookupSettings):
        yield ("lookup",), written.lookup
        for key, value in written.table.items():
            if isinstance(value, str):
                yield ("table", key), value
        if isinstance(written.default, str):
            yield ("default",), written.default
    elif isinstance(written, Sequence):
        yield from (((index,), value) for index, value in enumerate(written) if isinstance(value, str))
