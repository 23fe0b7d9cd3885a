"""The `impacted_services` settings of a receiver."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, TypeAlias

from pydantic import AfterValidator, Field, field_validator, model_validator

from statsig_otel.config.errors import SettingError
from statsig_otel.config.model import Settings
from statsig_otel.plugin.record.mapping import Source, Texts
from statsig_otel.plugin.record.services import (
    MAX_RECORDS,
    ImpactedServices,
    ServiceRule,
    parse_service_template,
)
from statsig_otel.plugin.settings.filter import Blocks, blocks_of
from statsig_otel.plugin.settings.mapping import LookupSettings


def _check_template(text: str) -> str:
    parse_service_template(text)
    if text != text.strip():
        raise ValueError("begins or ends with white space")
    return text


def _check_names(names: list[str]) -> list[str]:
    twice = [name for index, name in enumerate(names) if name in names[:index]]
    if twice:
        raise ValueError(f"has {twice[0]} twice")
    return names


_Template = Annotated[str, AfterValidator(_check_template)]
_Names: TypeAlias = Annotated[
    list[_Template], Field(min_length=1, max_length=MAX_RECORDS), AfterValidator(_check_names)
]


class ServiceRuleSettings(Settings):
    """A rule: the services of the changes that it matches."""

    needed: ClassVar[Mapping[str, str]] = {"name": 'name the service, such as checkout or "{target_apps}"'}

    match: Blocks = Field(
        default=None,
        description="The changes, by blocks as in a filter; all without it. A mapping, or a list of them; one has to "
        "match.",
    )
    name: _Template | _Names | LookupSettings = Field(
        description="The service.name, a template; each element of an array is a service. Or a list, or a lookup.",
        examples=["checkout", ["cart", "checkout"], "{target_apps}"],
    )
    namespace: _Template | None = Field(
        default=None, description="The service.namespace, a template, instead of that of all rules.", examples=["shop"]
    )

    @field_validator("name")
    @classmethod
    def _check_lookup(cls, name: str | list[str] | LookupSettings) -> str | list[str] | LookupSettings:
        values = [name.lookup, *name.table.values(), name.default] if isinstance(name, LookupSettings) else []
        for value in values:
            if isinstance(value, str):
                _check_template(value)
        return name

    def rule(self, namespace: str | None) -> ServiceRule:
        """The rule itself.

        Args:
            namespace: The namespace of the services where the rule has none.
        """
        template = self.namespace or namespace
        return ServiceRule(
            names=_source(self.name),
            namespace=None if template is None else parse_service_template(template),
            match=blocks_of(self.match),
        )


_Rules: TypeAlias = Annotated[list[ServiceRuleSettings], Field(min_length=1)]


class ImpactedServicesSettings(Settings):
    """Which services a change concerns."""

    needed: ClassVar[Mapping[str, str]] = {"rules": 'write at least one, such as {name: "{target_apps}"}'}

    split: bool = Field(
        default=True,
        description="A record for each service, whose resource is that service. With false there is one record of a "
        "change, with its services as statsig.impacted_services.",
    )
    first_match: bool = Field(
        default=False,
        description="Stop at the first rule that finds a service, so that the last one can be for all other changes.",
    )
    namespace: _Template | None = Field(
        default=None, description="The service.namespace of all rules that have none, a template.", examples=["shop"]
    )
    rules: ServiceRuleSettings | _Rules = Field(
        description="The rules: a mapping, or a list of them. All that match count, unless first_match says otherwise.",
        examples=[[{"match": {"names": ["checkout_*"]}, "name": "checkout"}, {"name": "{target_apps}"}]],
    )

    @model_validator(mode="after")
    def _check_rules(self) -> "ImpactedServicesSettings":
        rules = self._rules()
        for index, rule in enumerate(rules):
            first = rules.index(rule)
            if first < index:
                raise SettingError(f"rules[{index}] says what rules[{first}] says", "remove one of them")
        return self

    def create(self) -> ImpactedServices:
        """The rules that find the services of a change."""
        rules = [rule.rule(self.namespace) for rule in self._rules()]
        return ImpactedServices(rules, first_match=self.first_match, split=self.split)

    def _rules(self) -> list[ServiceRuleSettings]:
        return self.rules if isinstance(self.rules, list) else [self.rules]


def _source(written: str | list[str] | LookupSettings) -> Source:
    if isinstance(written, LookupSettings):
        return written.source()
    if isinstance(written, list):
        return Texts(tuple(parse_service_template(text) for text in written))
    return parse_service_template(written)
