"""Says of each entry of the audit log whether a webhook brought its change. Pure functions, without I/O."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from statsig_otel.exporters.arrival import Arrival
from statsig_otel.exporters.wording import rfc3339
from statsig_otel.plugin.audit_log.entries import AuditEntry, Page
from statsig_otel.plugin.audit_log.matching import Outcome, match

Verdict = Literal[
    "received",
    "filtered",
    "missed",
    "filled_in",
    "ambiguous",
    "not_remembered",
    "unknown_type",
    "ignored_type",
    "not_a_change",
]
"""What is said of an entry:

- `received`: a webhook brought its change, and it was accepted.
- `filtered`: likewise, and the receiver's filter dropped it. Or no webhook brought it, and the filter drops it.
- `missed`: no webhook brought it.
- `filled_in`: likewise, or that can't be told; and a record was made of the entry.
- `ambiguous`: one of these, and it can't be told which, since other entries are too much like it.
- `not_remembered`: the queue does not remember what came at that time.
- `unknown_type`: nothing brought it, and it is not known whether Statsig sends a webhook for its type.
- `ignored_type`: likewise, and the configuration says that Statsig sends none.
- `not_a_change`: it is about something else, such as a login.
"""

_UNMATCHED: Final[frozenset[Outcome]] = frozenset({"missed"})


@dataclass(frozen=True, slots=True)
class Line:
    """An entry, and what is said of it.

    Attributes:
        entry: The entry.
        verdict: What is said of it.
        may_be: What an ambiguous one can be.
        uid: The `log.record.uid` of its record, if that is certain.
    """

    entry: AuditEntry
    verdict: Verdict
    may_be: frozenset[Outcome] = frozenset()
    uid: str | None = None


@dataclass(frozen=True, slots=True)
class Period:
    """The period of a report, in seconds since the epoch.

    Attributes:
        begin: The first second.
        end: The last one.
        remembered: The first second for which the queue remembers what came.
    """

    begin: int
    end: int
    remembered: int


@dataclass(frozen=True, slots=True)
class Report:
    """What is said of all entries of a period.

    Attributes:
        period: The period.
        lines: The entries, the oldest first.
        missed: How many changes are missed at least, also where it can't be said which.
        unreadable: Why other entries could not be read.
    """

    period: Period
    lines: tuple[Line, ...]
    missed: int
    unreadable: tuple[str, ...]

    @property
    def counts(self) -> dict[Verdict, int]:
        """The number of entries, by verdict."""
        return dict(Counter(line.verdict for line in self.lines))

    @property
    def about_webhooks(self) -> list[AuditEntry]:
        """The entries that can explain why changes are missing."""
        return [line.entry for line in self.lines if line.entry.kind == "webhook"]

    def to_json(self) -> dict[str, object]:
        """The report as JSON: docs/no-gaps.md has its members."""
        return {
            "since": rfc3339(self.period.begin),
            "until": rfc3339(self.period.end),
            "remembered_since": rfc3339(self.period.remembered),
            "missed": self.missed,
            "counts": self.counts,
            "entries": [_line(line) for line in self.lines],
            "unreadable": list(self.unreadable),
        }


def report(
    page: Page, arrivals: Sequence[Arrival], period: Period, *, tolerance: float, ignore: Collection[str] = ()
) -> Report:
    """Compare the entries of a period with what came.

    Args:
        page: The entries, those within the tolerance before and after the period included.
        arrivals: What came, likewise.
        period: The period.
        tolerance: The most seconds between the times of an entry and of its change.
        ignore: Types of entries for which Statsig sends no webhook.
    """
    entries = [entry for entry in page.entries if period.begin - tolerance <= entry.second <= period.end + tolerance]
    candidates = [entry for entry in entries if entry.kind in ("change", "unknown")]
    made = {one.uid: one for one in arrivals if one.from_log}

    def is_expected(entry: AuditEntry) -> bool:
        """Whether its webhook is missed if it did not come."""
        is_inside = max(period.begin, period.remembered + tolerance) <= entry.second <= period.end
        is_made = bool(made) and entry.uid in made
        return is_inside and entry.kind == "change" and entry.action_type not in ignore and not is_made

    came = [one for one in arrivals if not one.from_log]
    found = match(candidates, came, tolerance=tolerance, wanted=is_expected)
    matched = dict(zip((entry.id for entry in candidates), found.entries, strict=True))
    lines: list[Line] = []
    for entry in entries:
        if not period.begin <= entry.second <= period.end:
            continue
        if entry.id not in matched:
            lines.append(Line(entry, "not_a_change"))
            continue
        outcomes, uid = matched[entry.id].outcomes, matched[entry.id].uid
        verdict: Verdict = "ambiguous" if len(outcomes) > 1 else next(iter(outcomes))
        if outcomes == _UNMATCHED and not is_expected(entry):
            verdict = "unknown_type" if entry.kind == "unknown" else "ignored_type"
        if "missed" in outcomes and entry.second < period.remembered + tolerance:
            verdict = "not_remembered"
        if "missed" in outcomes and made and (own := made.get(entry.uid)) is not None:
            verdict, uid = ("filtered", None) if own.filtered else ("filled_in", own.uid)
        lines.append(Line(entry, verdict, outcomes if verdict == "ambiguous" else frozenset(), uid))
    lines.sort(key=lambda line: line.entry.second)
    return Report(period, tuple(lines), found.missed, page.unreadable)


def _line(line: Line) -> dict[str, object]:
    entry = line.entry
    return {
        "id": entry.id,
        "at": rfc3339(entry.second),
        "verdict": line.verdict,
        "may_be": sorted(line.may_be),
        "uid": line.uid,
        "name": entry.name,
        "type": entry.action_type,
        "text": entry.text,
        "by": {"id": entry.user_id, "name": entry.user_name, "email": entry.user_email},
    }
