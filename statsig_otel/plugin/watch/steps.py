"""Says what the set-up of a service still needs."""

from typing import NamedTuple

from statsig_otel.plugin.watch.diagnosis import without_secret
from statsig_otel.plugin.watch.facts import Facts


class Step(NamedTuple):
    """A step of the set-up."""

    text: str
    is_done: bool
    is_current: bool


def steps(facts: Facts) -> list[Step]:
    """The steps of the set-up; none once it is complete. What waits or was delivered proves the steps before that."""
    receivers = facts.receivers
    delivered = any(one.delivered for one in facts.exporters)
    has_change = delivered or any(one.last_change for one in receivers) or any(one.waiting for one in facts.exporters)
    is_accepted = has_change or any(one.last_accepted for one in receivers)
    paths = " or ".join(dict.fromkeys(one.path for one in receivers))
    without = without_secret(facts)
    for_which = f" for {', '.join(without)}" if without and len(receivers) > 1 else ""
    done = {
        f"A request, such as Statsig's URL verification, reaches the URL that ends with {paths}": is_accepted
        or any(one.last_verified or one.answers for one in receivers),
        f"A signing secret is set{for_which}": bool(receivers) and not without,
        "A signed webhook is accepted": is_accepted,
        "It has a config change": has_change,
        "A change is delivered": delivered,
    }
    if all(done.values()):
        return []
    current = next(text for text, is_done in done.items() if not is_done)
    return [Step(text, is_done, text == current) for text, is_done in done.items()]
