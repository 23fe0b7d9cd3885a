"""Counts what the demo sent, what was answered and what arrived, and reports differences from the sample day."""

import json
from collections import Counter
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from statsig_otel.exporters.wording import counted
from statsig_otel.plugin.demo.day import Delivery
from statsig_otel.plugin.demo.table import Row
from statsig_otel.plugin.demo.webhook_client import Answer

_COUNTS: Final = ("accepted", "duplicates", "ignored", "invalid")


class Tally:
    """Counts one sample day. If the backend is the demo's own, it also sees what arrives."""

    def __init__(self, day: Sequence[Delivery]) -> None:
        self._day = day
        self._expected = dict(row for delivery in day if not delivery.forged for row in delivery.rows)
        self._seen: set[str] = set()
        self._records = 0
        self._repeated = 0
        self._answers: list[tuple[Delivery, Answer]] = []
        self._counts: Counter[str] = Counter()
        self._problems: list[str] = []

    @property
    def expected(self) -> list[Row]:
        """The rows of the changes that must arrive."""
        return list(self._expected.values())

    def answered(self, delivery: Delivery, answer: Answer) -> bool:
        """Count the answer to a delivery. Return whether the answer is the expected one."""
        self._answers.append((delivery, answer))
        problem = self._problem(delivery, answer)
        if problem is not None:
            self._problems.append(f"{_name(delivery)} {problem}: {answer.text}")
        return problem is None

    def arrived(self, uid: str, row: Row) -> bool:
        """Count a record that arrived at the backend. Return whether its uid had arrived before."""
        self._records += 1
        is_repeated = uid in self._seen
        self._repeated += is_repeated
        if uid:
            self._seen.add(uid)
        if uid not in self._expected:
            self._problems.append(f"{row.title!r} arrived, but must not arrive")
        elif self._expected[uid] != row:
            self._problems.append(f"{row.title!r} arrived, but differs from what was sent")
        return is_repeated

    @property
    def is_complete(self) -> bool:
        """Whether every change has arrived, and at least as many records as the service accepted."""
        return self._expected.keys() <= self._seen and self._records >= self._counts["accepted"]

    def problems(self, *, sees_arrivals: bool) -> list[str]:
        """The differences from the expected day, as messages."""
        if not sees_arrivals:
            return self._problems
        missing = [row for uid, row in self._expected.items() if uid not in self._seen]
        return [*self._problems, *(f"{row.title!r} did not arrive" for row in missing)]

    def summary(self, *, sees_arrivals: bool) -> dict[str, str]:
        """The counts of what was sent, answered and received: a line for each title."""
        sent = [delivery for delivery, _ in self._answers]
        statuses = [answer.status for _, answer in self._answers]
        forged = [answer.status for delivery, answer in self._answers if delivery.forged]
        changes = sum(len(delivery.rows) for delivery in sent)
        repeated = sum(len(delivery.rows) for delivery in sent if delivery.redelivery)
        false = sum(len(delivery.rows) for delivery in sent if delivery.forged)
        exposures = sum(delivery.ignored for delivery in sent)
        counts = self._counts
        lines = {
            "sent": f"{len(sent)} of {len(self._day)} webhooks, with {counted(changes, 'change')} "
            f"({repeated} sent twice, {false} forged) and {counted(exposures, 'exposure')}",
            "answered": ", ".join(f"{statuses.count(status)} with {status}" for status in sorted(set(statuses))),
            "accepted": f"{counted(counts['accepted'], 'change')}, {counted(counts['duplicates'], 'duplicate')}, "
            f"{counts['invalid']} invalid",
            "ignored": counted(counts["ignored"], "exposure"),
            "refused": f"{forged.count(HTTPStatus.UNAUTHORIZED)} of {counted(len(forged), 'forged webhook')} (401)",
        }
        if sees_arrivals:
            again = f"{counted(self._repeated, 'record')} again, with the same log.record.uid"
            lines["arrived"] = (
                f"{len(self._expected.keys() & self._seen)} of {len(self._expected)} changes, "
                f"{again if self._repeated else 'each once'}"
            )
        return lines

    def _problem(self, delivery: Delivery, answer: Answer) -> str | None:
        """What is wrong with an answer; None if nothing is."""
        expected = HTTPStatus.UNAUTHORIZED if delivery.forged else HTTPStatus.OK
        if answer.status != expected:
            return f"was answered with {answer.status_line}, not {expected.value}"
        if delivery.forged:
            return None
        try:
            body = json.loads(answer.body)
            counts = {key: int(body[key]) for key in _COUNTS}
        except (ValueError, KeyError, TypeError):
            return "got an answer that is not a receiver's"
        self._counts.update(counts)
        changes = counts["accepted"] + counts["duplicates"]
        is_right = (changes, counts["ignored"], counts["invalid"]) == (len(delivery.rows), delivery.ignored, 0)
        return None if is_right else "was answered with counts that do not match its content"


def _name(delivery: Delivery) -> str:
    if delivery.forged:
        return "the forged delivery"
    if delivery.redelivery:
        return "the redelivery"
    return f"the delivery of {delivery.rows[0][1].title!r}" if delivery.rows else "a delivery of exposures"
