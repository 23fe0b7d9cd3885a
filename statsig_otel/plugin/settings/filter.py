"""The `filter` settings of a receiver."""

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from statsig_otel.config.errors import SettingError, list_of
from statsig_otel.config.model import Settings
from statsig_otel.plugin.record.filter import Block, ChangeFilter


def _check_pattern(pattern: str) -> str:
    if pattern.startswith("!"):
        raise SettingError(
            "begins with !, which stands for itself",
            "no pattern is negated: use exclude of a filter, or an earlier rule and first_match of impacted_services; "
            "write ? for the character",
        )
    return pattern


_Patterns = list[Annotated[str, AfterValidator(_check_pattern)]]


class ChangeMatchSettings(Settings):
    """A block: patterns by field. Each field has to match, by one of its patterns.

    Example:
        >>> from statsig_otel.plugin import ChangeMatchSettings
        >>> ChangeMatchSettings(types=["gate"], environments=["prod*"]).types
        ['gate']
    """

    types: _Patterns | None = Field(
        default=None,
        min_length=1,
        description="Patterns of types. Case, spaces and _ don't count: dynamic_config is Dynamic Config.",
        examples=[["gate", "dynamic_config"]],
    )
    actions: _Patterns | None = Field(
        default=None, min_length=1, description="Patterns of actions, likewise.", examples=[["created", "deleted"]]
    )
    environments: _Patterns | None = Field(
        default=None,
        min_length=1,
        description="Patterns of environments, in any case.",
        examples=[["production"], ["production", ""]],
    )
    names: _Patterns | None = Field(
        default=None,
        min_length=1,
        description="Patterns of the names of gates, experiments, ...",
        examples=[["checkout_*"]],
    )
    projects: _Patterns | None = Field(
        default=None, min_length=1, description="Patterns of the project's id or name.", examples=[["Web"]]
    )
    tags: _Patterns | None = Field(default=None, min_length=1, description="Patterns of tags.", examples=[["core"]])
    target_apps: _Patterns | None = Field(
        default=None, min_length=1, description="Patterns of target apps.", examples=[["web"]]
    )
    actors: _Patterns | None = Field(
        default=None,
        min_length=1,
        description="Patterns of who made the change: id, name or email, in any case.",
        examples=[["*@example.com"]],
    )

    @model_validator(mode="after")
    def _check_fields(self) -> "ChangeMatchSettings":
        if not self.block():
            raise SettingError("names no field", list_of(type(self).model_fields))
        return self

    def block(self) -> Block:
        """The patterns by field, as a filter takes them."""
        return self.model_dump(exclude_none=True)


Blocks = ChangeMatchSettings | Annotated[list[ChangeMatchSettings], Field(min_length=1)] | None
"""A block, or a list of them."""


class FilterSettings(Settings):
    """Which changes are exported.

    Example:
        >>> from statsig_otel.plugin import ChangeMatchSettings, FilterSettings, StatsigReceiverSettings
        >>> without_tests = FilterSettings(exclude=ChangeMatchSettings(names=["test_*"]))
        >>> mapper = StatsigReceiverSettings(signing_secrets=["webhook-..."], filter=without_tests).mapper()
    """

    include: Blocks = Field(
        default=None, description="Only these changes are exported. A mapping, or a list of them; one has to match."
    )
    exclude: Blocks = Field(
        default=None, description="These changes are not exported, whatever include says. A mapping, or a list of them."
    )

    def create(self) -> ChangeFilter:
        """The filter itself."""
        return ChangeFilter(include=blocks_of(self.include), exclude=blocks_of(self.exclude))


def blocks_of(written: Blocks) -> list[Block]:
    """The blocks, as a filter takes them."""
    if written is None:
        return []
    return [one.block() for one in (written if isinstance(written, list) else [written])]
