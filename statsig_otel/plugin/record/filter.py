"""Which changes go on to the exporters: include and exclude, by what a change says of itself.

A block holds patterns by field. It matches a change where each of its fields has a pattern that matches. A change goes
on where no block of exclude matches it, and where one of include does, if there is any.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from typing import Final, TypeAlias

from statsig_otel.plugin.record.change_event import ChangeEvent

Block: TypeAlias = Mapping[str, Sequence[str]]
"""Patterns by the names in `FIELDS`."""

_SEPARATORS: Final = re.compile(r"[\s_]")
_SET_OR_SEPARATOR: Final = re.compile(r"\[(?P<not>!?+)(?P<set>.[^\]]*+)\]|[\s_]", re.DOTALL)
"""A set of a pattern, by the rules of fnmatch; or what does not count outside of one."""


def _spelling(text: str) -> str:
    """One spelling of `Dynamic Config`, `DynamicConfig` and `dynamic_config`, which Statsig all sends."""
    return _SEPARATORS.sub("", text.lower())


def _spelled_pattern(pattern: str) -> str:
    """A pattern for values in that spelling. A set of nothing but blanks and _ stands for one, which they have not."""

    def spelled(match: re.Match[str]) -> str:
        if match["set"] is None:
            return ""
        if _spelling(match["set"]):
            return match[0]
        return "?" if match["not"] else ""

    return _SET_OR_SEPARATOR.sub(spelled, pattern.lower())


@dataclass(frozen=True, slots=True)
class Field:
    """What the patterns of one field are compared with.

    Attributes:
        values: What a change has there.
        spelled: Applied to values.
        spelled_pattern: Applied to patterns.
        excludes: Whether a change of several values is excluded for one of them (`any`), or for all only (`all`).
    """

    values: Callable[[ChangeEvent], tuple[str | None, ...]]
    spelled: Callable[[str], str] = str
    spelled_pattern: Callable[[str], str] = str
    excludes: Callable[[Iterable[bool]], bool] = any


FIELDS: Final[Mapping[str, Field]] = {
    "types": Field(lambda event: (event.entity_type,), _spelling, _spelled_pattern),
    "actions": Field(lambda event: (event.action,), _spelling, _spelled_pattern),
    # What development shares with production is a change of production, too.
    "environments": Field(lambda event: event.environments, str.lower, str.lower, all),
    "names": Field(lambda event: (event.name,)),
    "projects": Field(lambda event: (event.project_id, event.project_name)),
    "tags": Field(lambda event: event.tags),
    "target_apps": Field(lambda event: event.target_apps),
    "actors": Field(lambda event: (event.user_id, event.user_name, event.user_email), str.lower, str.lower),
}
"""The fields that a block can have."""


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
        """For each value whether a pattern matches it. What is absent is an empty text."""
        values = [value for value in self._field.values(event) if value] or [""]
        spelled = map(self._field.spelled, values)
        return (any(expression.match(value) for expression in self._expressions) for value in spelled)


class ChangeFilter:
    """Tells which changes go on. Safe to use from several threads.

    Args:
        include: Where there is any block, only the changes go on that one of them matches.
        exclude: The changes that one of these matches don't go on, whatever `include` says.

    Raises:
        ValueError: A block names a field that there is not, or none at all.

    Example:
        >>> from statsig_otel.plugin import ChangeEvent
        >>> from statsig_otel.plugin.record.filter import ChangeFilter
        >>> change_filter = ChangeFilter(include=[{"environments": ["prod*"]}], exclude=[{"names": ["test_*"]}])
        >>> change = ChangeEvent(happened_at=1739400185198, entity_type="Gate", name="a", environments=("production",))
        >>> change_filter.why_dropped(change) is None
        True
    """

    def __init__(self, *, include: Sequence[Block] = (), exclude: Sequence[Block] = ()) -> None:
        self._include = [_compiled(block) for block in include]
        self._exclude = [_compiled(block) for block in exclude]

    def why_dropped(self, event: ChangeEvent) -> str | None:
        """Why a change does not go on; None where it does."""
        for index, block in enumerate(self._exclude):
            if all(patterns.exclude(event) for patterns in block):
                return f"exclude[{index}] matches"
        if self._include and not any(all(patterns.include(event) for patterns in block) for block in self._include):
            return "no include matches"
        return None


def _compiled(block: Block) -> list[_Patterns]:
    if not block or not block.keys() <= FIELDS.keys():
        raise ValueError(f"a block needs fields, of {', '.join(FIELDS)}")
    return [_Patterns(FIELDS[name], patterns) for name, patterns in block.items()]
