"""Recognises changes of rules, groups and parameters in a description: Statsig sends them only as lines of text.

    Updated Config Conditions
        - Updated rule test pass percentage from 100 to 50

Statsig does not document the wording. A line that is not recognised is ignored, and is never an error.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from statsig_otel import _attributes
from statsig_otel.plugin.record.arrays import MAX_ELEMENTS, joined, split
from statsig_otel.plugin.record.serializer import AttributeValue

_NUMBER: Final = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
_FROM_TO: Final = rf"from (?P<before>{_NUMBER})%? to (?P<after>{_NUMBER})%?"
_PATTERNS: Final = {
    "rule_rollout": rf"updated rule (?P<rule>.+) rollout {_FROM_TO}",
    "rule_pass_percentage": rf"updated rule (?P<rule>.+) pass percentage {_FROM_TO}",
    "rule_added": r"added rule (?P<rule>.+)",
    "rule_removed": r"removed rule (?P<rule>.+)",
    "rule_deleted": r"deleted rule (?P<rule>.+)",
    "groups_added": r"groups added: (?P<names>.+)",
    "groups_updated": r"groups updated: (?P<names>.+)",
    "groups_removed": r"groups removed: (?P<names>.+)",
    "parameters_added": r"parameters added: (?P<names>.+)",
    "parameters_updated": r"parameters updated: (?P<names>.+)",
    "parameters_removed": r"parameters removed: (?P<names>.+)",
}
_BEGINNING: Final = 7
"""Characters of a line that select the expressions to try: a description can have millions of lines."""

_EXPRESSIONS: Final[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}
for _kind, _pattern in _PATTERNS.items():
    _EXPRESSIONS.setdefault(_pattern[:_BEGINNING], []).append((_kind, re.compile(_pattern, re.IGNORECASE)))

_LINE: Final = re.compile(r"[^\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")
"""A line, by the rules of `str.splitlines`."""

_BULLETS: Final = "-*• \t"


@dataclass(frozen=True, slots=True)
class Detail:
    """One change that was recognised in a description."""

    kind: str
    rule: str | None = None
    before: float | None = None  # percent
    after: float | None = None
    names: tuple[str, ...] = ()  # of groups or parameters


def details(description: str) -> Iterator[Detail]:
    """The changes that are recognised in a description, in order."""
    for line in _LINE.finditer(description):
        text = line[0].strip().lstrip(_BULLETS)
        for kind, expression in _EXPRESSIONS.get(text[:_BEGINNING].casefold(), ()):
            match = expression.fullmatch(text)
            if match:
                yield _detail(kind, match.groupdict())
                break


def _detail(kind: str, found: dict[str, str | None]) -> Detail:
    before, after = found.get("before"), found.get("after")
    return Detail(
        kind,
        rule=found.get("rule"),
        before=None if before is None else float(before),
        after=None if after is None else float(after),
        names=split(found.get("names") or ""),
    )


def attributes(description: str) -> dict[str, AttributeValue]:
    """The `statsig.change.*` attributes of a description.

    The arrays list all recognised changes; those behind the first 1,000 are not looked at. `kind`, `rule`, `from` and
    `to` are there only if exactly one change is recognised.
    """
    found = list(islice(details(description), MAX_ELEMENTS))
    arrays: dict[str, list[tuple[str, ...]]] = {
        _attributes.DETAIL_KINDS: [(one.kind,) for one in found],
        _attributes.DETAIL_RULES: [(one.rule,) for one in found if one.rule],
        _attributes.DETAIL_GROUPS: [one.names for one in found if one.kind.startswith("groups")],
        _attributes.DETAIL_PARAMETERS: [one.names for one in found if one.kind.startswith("parameters")],
    }
    made: dict[str, AttributeValue] = {}
    if len(found) == 1:
        only = found[0]
        scalars = {
            _attributes.DETAIL_KIND: only.kind,
            _attributes.DETAIL_RULE: only.rule,
            _attributes.DETAIL_FROM: only.before,
            _attributes.DETAIL_TO: only.after,
        }
        made = {name: value for name, value in scalars.items() if value is not None}
    return made | {name: array for name, several in arrays.items() if (array := joined(several, distinct=True))}
