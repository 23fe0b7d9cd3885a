"""Filters changes: include and exclude them by type, action, environment, name and other fields.

A block has patterns for some fields. It matches a change if each of its fields has a pattern that matches. A change
passes if no block of exclude matches it and, if include has blocks, one of those does.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from typing import Final, TypeAlias

from statsig_otel.plugin.record.change_event import ChangeEvent

Block: TypeAlias = Mapping[str, Sequence[str]]
"""Patterns by field, with the names in `FIELDS`."""

_SEPARATORS: Final = re.compile(r"[\s_]")
_SET_OR_SEPARATOR: Final = re.compile(r"\[(?P<not>!?+)(?P<set>.[^\]]*+)\]|[\s_]", re.DOTALL)
"""A set in a pattern, by the rules of fnmatch; or a separator outside of a set."""


def _spelling(text: str) -> str:
    """The same spelling for `Dynamic Config`, `DynamicConfig` and `dynamic_config`: Statsig sends all three."""
    return _SEPARATORS.sub("", text.lower())


def _spelled_pattern(pattern: str) -> str:
    """A pattern for values in that spelling. A set of separators is dropped, too; its complement is any character."""

    def spelled(match: re.Match[str]) -> str:
        if match["set"] is None:
            return ""
        if _spelling(match["set"]):
            return match[0]
        return "?" if match["not"] else ""

    return _SET_OR_SEPARATOR.sub(spelled, pattern.lower())


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a change that patterns are compared with.

    Attributes:
        values: Gets the values of the field from a change.
        spelled: Applied to each value before it is compared.
        spelled_pattern: Applied to each pattern.
        excludes: Whether one matching value excludes a change (`any`), or all of its values have to match (`all`).
    """

    values: Callable[[ChangeEvent], tuple[str | None, ...]]
    spelled: Callable[[str], str] = str
    spelled_pattern: Callable[[str], str] = str
    excludes: Callable[[Iterable[bool]], bool] = any


FIELDS: Final[Mapping[str, Field]] = {
    "types": Field(lambda event: (event.entity_type,), _spelling, _spelled_pattern),
    "actions": Field(lambda event: (event.action,), _spelling, _spelled_pattern),
    # A change of development and production is a change of production, too.
    "environments": Field(lambda event: event.environments, str.lower, str.lower, all),
    "names": Field(lambda event: (event.name,)),
    "projects": Field(lambda event: (event.project_id, event.project_name)),
    "tags": Field(lambda event: event.tags),
    "target_apps": Field(lambda event: event.target_apps),
    "actors": Field(lambda event: (event.user_id, event.user_name, event.user_email), str.lower, str.lower),
}
"""The fields of a block."""


class _Patterns:
    """The patterns of one field, as `fnmatch.fnmatchcase` reads them."""

    def __init__(self, field: Field, patterns: Iterable[str]) -> None:
        self._field = field
        self._expressions = [re.compile(translate(field.spelled_pattern(pattern))) for pattern in patterns]

    def include(self, event: ChangeEvent) -> bool:
        return any(self._matches(event))

    def exclude(self, event: ChangeEvent) -> bool:
        return self._field.excludes(self._matches(event))

    def _matches(self, event: ChangeEvent) -> Iterable[bool]:
        """Whether a pattern matches, for each value. An absent value counts as an empty string."""
        values = [value for value in self._field.values(event) if value] or [""]
        spelled = map(self._field.spelled, values)
        return (any(expression.match(value) for expression in self._expressions) for value in spelled)


class ChangeFilter:
    """Decides which changes pass. Safe to use from several threads.

    Args:
        include: If there are any blocks, a change passes only if one of them matches.
        exclude: A change that one of these blocks matches does not pass, whatever `include` says.

    Raises:
        ValueError: A block has an unknown field, or no field.
    """

    def __init__(self, *, include: Sequence[Block] = (), exclude: Sequence[Block] = ()) -> None:
        self._include = [_compiled(block) for block in include]
        self._exclude = [_compiled(block) for block in exclude]

    def why_dropped(self, event: ChangeEvent) -> str | None:
        """Why a change does not pass; None if it does."""
        for index, block in enumerate(self._exclude):
            if all(patterns.exclude(event) for patterns in block):
                return f"exclude[{index}] matches"
        if self._include and not any(all(patterns.include(event) for patterns in block) for block in self._include):
            return "no include matches"
        return None


def _compiled(block: Block) -> list[_Patterns]:
    if not block or not block.keys() <= FIELDS.keys():
        raise ValueError(f"a block needs at least one field, and knows {', '.join(FIELDS)}")
    return [_Patterns(FIELDS[name], patterns) for name, patterns in block.items()]
