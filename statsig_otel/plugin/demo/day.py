"""Generates the webhooks of an invented working day. Their times, and so their uids, differ in each run."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from statsig_otel.plugin.demo.samples import (
    GROWTH_ANALYST,
    PLATFORM_ENGINEER,
    RELEASE_MANAGER,
    SEARCH_ENGINEER,
    Actor,
    Event,
    bare,
    config_change,
    enveloped,
    exposure,
)
from statsig_otel.plugin.demo.table import Row
from statsig_otel.plugin.record.change_event import ChangeEvent
from statsig_otel.plugin.record.record import uid
from statsig_otel.plugin.webhook.body import CONFIG_CHANGE

_LENGTH_MS: Final = 10 * 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One webhook."""

    body: bytes
    rows: tuple[tuple[str, Row], ...] = ()  # of each config change: its uid, and the row that is expected
    ignored: int = 0  # the number of other events
    forged: bool = False  # signed with a secret that is not the receiver's
    redelivery: bool = False  # the same body was sent before


@dataclass(frozen=True, slots=True)
class _Change:
    at: str  # time of day
    entity_type: str
    title: str  # the name and the action
    environments: str
    by: Actor | None
    description: str

    def events(self, start_ms: int) -> Iterator[Event]:
        name, action = self.title.split()
        at_ms = start_ms + _milliseconds(self.at)
        environments = self.environments.split()
        yield config_change(
            at_ms, self.entity_type, name, action, self.description, environments=environments, by=self.by
        )


@dataclass(frozen=True, slots=True)
class _Exposures:
    at: str
    count: int

    def events(self, start_ms: int) -> Iterator[Event]:
        shown = (("gate", "new_checkout"), ("experiment", "onboarding_copy"), ("config", "search_ranking"))
        for number in range(self.count):
            at_ms = start_ms + _milliseconds(self.at) + number
            yield exposure(at_ms, *shown[number % len(shown)], user_id=f"visitor-{number}")


def sample_day(now_ms: int) -> tuple[Delivery, ...]:
    """The deliveries of the last ten hours, in order. `now_ms` is in milliseconds since the epoch."""
    start_ms = now_ms - _LENGTH_MS

    def delivery(*parts: _Change | _Exposures, forged: bool = False, redelivery: bool = False) -> Delivery:
        events = [event for part in parts for event in part.events(start_ms)]
        changes = [event for event in events if event["eventName"] == CONFIG_CHANGE]
        return Delivery(
            body=enveloped(events) if len(changes) == len(events) else bare(events),
            rows=tuple((uid(event), Row.of(ChangeEvent.from_item(event))) for event in changes),
            ignored=len(events) - len(changes),
            forged=forged,
            redelivery=redelivery,
        )

    ranking_updated = _Change(
        "02:40", "DynamicConfig", "search_ranking updated", "staging", SEARCH_ENGINEER,
        "Updated Config Conditions\n    - Updated return value of rule Everyone",
    )  # fmt: skip
    return (
        delivery(_Change("00:04", "Gate", "new_checkout created", "", PLATFORM_ENGINEER, "Created Gate")),
        delivery(_Change(
            "00:31", "Gate", "new_checkout updated", "development staging", PLATFORM_ENGINEER,
            "Updated Gate\n    - Added rule Staff\n    - Updated rule Staff pass percentage from 0 to 100",
        )),
        delivery(_Exposures("01:02", 6)),
        delivery(
            _Change("01:15", "Experiment", "onboarding_copy created", "", GROWTH_ANALYST, "Created Experiment"),
            _Change(
                "01:48", "Experiment", "onboarding_copy updated", "staging production", GROWTH_ANALYST,
                "Started Experiment\n    - Groups: control, short, playful",
            ),
        ),
        delivery(ranking_updated),
        delivery(
            _Change(
                "03:20", "Gate", "new_checkout updated", "production", RELEASE_MANAGER,
                "Updated Gate\n    - Updated rule Everyone pass percentage from 0 to 10",
            ),
            _Exposures("03:21", 4),
        ),
        delivery(_Change(
            "04:10", "Gate", "payments_kill_switch updated", "production", RELEASE_MANAGER, "Turned off for everybody"
        ), forged=True),
        delivery(ranking_updated, redelivery=True),
        delivery(
            _Change("05:05", "Dynamic Config", "banner_texts created", "", GROWTH_ANALYST, "Created Dynamic Config"),
            _Change(
                "05:30", "Dynamic Config", "banner_texts updated", "development", GROWTH_ANALYST,
                "Updated Config Conditions",
            ),
        ),
        delivery(_Change(
            "06:12", "Gate", "new_checkout updated", "production", RELEASE_MANAGER,
            "Updated Gate\n    - Updated rule Everyone pass percentage from 10 to 50",
        )),
        delivery(_Exposures("06:13", 8)),
        delivery(_Change(
            "06:40", "Gate", "new_checkout updated", "production", PLATFORM_ENGINEER,
            "Updated Gate\n    - Updated rule Everyone pass percentage from 50 to 0",
        )),
        delivery(_Change(
            "08:02", "Experiment", "onboarding_copy archived", "staging production", GROWTH_ANALYST,
            "Archived Experiment",
        )),
        delivery(
            _Change(
                "08:55", "Gate", "winter_theme archived", "development staging production", RELEASE_MANAGER,
                "Archived Gate",
            ),
            _Change("09:10", "DynamicConfig", "search_ranking updated", "production", None, "Updated by a schedule"),
        ),
    )  # fmt: skip


def _milliseconds(time_of_day: str) -> int:
    hours, minutes = map(int, time_of_day.split(":"))
    return (hours * 60 + minutes) * 60_000
