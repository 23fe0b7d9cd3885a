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
from statsig_otel.plugin.webhook.payload import CONFIG_CHANGE

_LENGTH_MS: Final = 10 * 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One request to the receiver.

    Attributes:
        body: The body of the request.
        rows: The `log.record.uid` of each config change in the body, and the row expected behind the collector.
        ignored: The number of other events in the body.
        forged: Whether the request is signed with a secret that is not the receiver's.
        redelivery: Whether the same body was sent before.
    """

    body: bytes
    rows: tuple[tuple[str, Row], ...] = ()
    ignored: int = 0
    forged: bool = False
    redelivery: bool = False


@dataclass(frozen=True, slots=True)
class _Change:
    at: str
    entity_type: str
    title: str
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


# The arguments: time of day, type, title, environments, actor, description.
_CHECKOUT_CREATED: Final = _Change("00:04", "Gate", "new_checkout created", "", PLATFORM_ENGINEER, "Created Gate")
_CHECKOUT_FOR_STAFF: Final = _Change(
    "00:31", "Gate", "new_checkout updated", "development staging", PLATFORM_ENGINEER,
    "Updated Gate\n    - Added rule Staff\n    - Updated rule Staff pass percentage from 0 to 100",
)  # fmt: skip
_COPY_CREATED: Final = _Change(
    "01:15", "Experiment", "onboarding_copy created", "", GROWTH_ANALYST, "Created Experiment"
)
_COPY_STARTED: Final = _Change(
    "01:48", "Experiment", "onboarding_copy updated", "staging production", GROWTH_ANALYST,
    "Started Experiment\n    - Groups: control, short, playful",
)  # fmt: skip
_RANKING_UPDATED: Final = _Change(
    "02:40", "DynamicConfig", "search_ranking updated", "staging", SEARCH_ENGINEER,
    "Updated Config Conditions\n    - Updated return value of rule Everyone",
)  # fmt: skip
_CHECKOUT_TO_10: Final = _Change(
    "03:20", "Gate", "new_checkout updated", "production", RELEASE_MANAGER,
    "Updated Gate\n    - Updated rule Everyone pass percentage from 0 to 10",
)  # fmt: skip
_FORGED: Final = _Change(
    "04:10", "Gate", "payments_kill_switch updated", "production", RELEASE_MANAGER, "Turned off for everybody"
)
_BANNER_CREATED: Final = _Change(
    "05:05", "Dynamic Config", "banner_texts created", "", GROWTH_ANALYST, "Created Dynamic Config"
)
_BANNER_UPDATED: Final = _Change(
    "05:30", "Dynamic Config", "banner_texts updated", "development", GROWTH_ANALYST, "Updated Config Conditions"
)
_CHECKOUT_TO_50: Final = _Change(
    "06:12", "Gate", "new_checkout updated", "production", RELEASE_MANAGER,
    "Updated Gate\n    - Updated rule Everyone pass percentage from 10 to 50",
)  # fmt: skip
_CHECKOUT_OFF: Final = _Change(
    "06:40", "Gate", "new_checkout updated", "production", PLATFORM_ENGINEER,
    "Updated Gate\n    - Updated rule Everyone pass percentage from 50 to 0",
)  # fmt: skip
_COPY_ARCHIVED: Final = _Change(
    "08:02", "Experiment", "onboarding_copy archived", "staging production", GROWTH_ANALYST, "Archived Experiment"
)
_THEME_ARCHIVED: Final = _Change(
    "08:55", "Gate", "winter_theme archived", "development staging production", RELEASE_MANAGER, "Archived Gate"
)
_RANKING_BY_SCHEDULE: Final = _Change(
    "09:10", "DynamicConfig", "search_ranking updated", "production", None, "Updated by a schedule"
)


def sample_day(now_ms: int) -> tuple[Delivery, ...]:
    """The deliveries of the last ten hours, in order.

    Args:
        now_ms: The current time, in milliseconds since the epoch.
    """
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

    return (
        delivery(_CHECKOUT_CREATED),
        delivery(_CHECKOUT_FOR_STAFF),
        delivery(_Exposures("01:02", 6)),
        delivery(_COPY_CREATED, _COPY_STARTED),
        delivery(_RANKING_UPDATED),
        delivery(_CHECKOUT_TO_10, _Exposures("03:21", 4)),
        delivery(_FORGED, forged=True),
        delivery(_RANKING_UPDATED, redelivery=True),
        delivery(_BANNER_CREATED, _BANNER_UPDATED),
        delivery(_CHECKOUT_TO_50),
        delivery(_Exposures("06:13", 8)),
        delivery(_CHECKOUT_OFF),
        delivery(_COPY_ARCHIVED),
        delivery(_THEME_ARCHIVED, _RANKING_BY_SCHEDULE),
    )


def _milliseconds(time_of_day: str) -> int:
    hours, minutes = map(int, time_of_day.split(":"))
    return (hours * 60 + minutes) * 60_000
