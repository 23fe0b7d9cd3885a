"""Says in plain words the state of a service, and what is wrong. Pure functions of `Facts`."""

import re
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Final, NamedTuple

from statsig_otel._journal import LOST_FOR, RequestEntry
from statsig_otel._telemetry import FAILED_STATES, NOT_CONFIGURED, OTHER
from statsig_otel.exporters.delivery.facts import ExporterFacts
from statsig_otel.exporters.wording import about, ago, counted
from statsig_otel.plugin.watch.facts import Facts, ReceiverFacts
from statsig_otel.plugin.watch.reasons import ANEW, COMPARE, check, why
from statsig_otel.plugin.webhook.body import CONFIG_CHANGE

_HOUR: Final = 3600.0
_MOST_NAMES: Final = 3
_MOST_REFUSALS: Final = 5
"""What strangers cause does not push out what else is wrong."""


class Trouble(NamedTuple):
    """Something that is wrong.

    Attributes:
        title: What has happened.
        check: What to check, and what to do.
        at: When it happened last, in seconds since the epoch.
        is_past: Whether that was a request, and is not a state that lasts.
        can_wait: Whether nothing gets worse until somebody looks: it mends itself once a backend is well again, or is
            kept. Or it is only suspected.
    """

    title: str
    check: str
    at: float
    is_past: bool = False
    can_wait: bool = False


_FILTERS: Final = (
    "Perhaps nothing has changed yet, or the webhook leaves changes out. In Statsig's console (Settings > Integrations "
    "> Generic Webhook), open Filters and choose Config Changes. Then change a gate that nobody uses, as a test."
)
_PORT: Final = (
    "Correct the port in the webhook's URL in Statsig's console (Settings > Integrations > Generic Webhook), or where "
    "a proxy in between sends it."
)
_HERE: Final = "Only this machine reaches this port, so a proxy or a tunnel on it is most likely the sender."
_LOOPBACK: Final = re.compile(r"\w+://(localhost|127\.[\d.]+|\[::1\])[:/]")
_LOG: Final = (
    "`statsig-otel reconcile` shows them, and what the audit log says about the webhook, such as a new signing secret."
)
_DAMAGE: Final = "A file of the queue was set aside: records may be missing"
_ASIDE: Final = (
    "In the queue's directory: {}. What can be read there is delivered; the log says what was wrong, and "
    "`statsig-otel reconcile` shows which changes never came. Then delete or move what is listed."
)
_DEAD_LETTERS: Final = (
    "They are kept, and are not delivered by themselves. Look at the reason of each one below, repair what it names, "
    "and replay it, or drop it."
)

_FIRST_TO_CHECK: Final = frozenset({"not_found", "tls", "tls_handshake", "http2", "proxy_protocol"})
"""Reasons of refusals by the server that are worth a word until a webhook with a valid signature arrives."""

_OF_OTHERS: Final = frozenset({"method", "signature_missing", "signature_malformed", "timestamp_missing", "no_secret"})
"""Reasons of refusals that strangers cause all the time. Between accepted webhooks they are not worth a word."""

_BARE: Final = "no_secret"
"""The reason of a refusal by a receiver without a signing secret."""

_NOT_A_WEBHOOK: Final = "method"
"""The reason of a refusal that a webhook can't have, once one was accepted."""

_SPORADIC: Final = (
    "Webhooks before and after it were accepted. If it happens again, look for what these have in common: a second "
    "webhook that uses this URL, large bodies, or one of several proxies."
)

_MEND: Final = {
    "certificate_expired": "Renew its files: the service uses the new ones by itself.",
    "not_running": "Look at the log for why, and restart the service.",
}
"""What to do while webhooks are refused, for the reasons that are not those of an answer."""

_AGAIN: Final = "The service tries again by itself; Try now does it at once."

_LONG: Final = 900.0
"""Seconds after which a record should have been sent if all is well. The alert on the oldest record has the same."""


def summary(facts: Facts) -> str:
    """The state of the service, in a few short sentences."""
    return " ".join(sentences(facts))


def sentences(facts: Facts) -> Iterator[str]:
    """The sentences of `summary`: what is wrong, then what came last, then what mends itself."""
    refused = list(_refusals(facts))
    yield from _not_received(facts, refused)
    yield from _perhaps_lost(facts)
    yield from _not_delivered(facts)
    for receiver in facts.receivers:
        if receiver.last_missed:
            name, second = receiver.last_missed[0]
            yield f"{_missed(receiver)}, the last one {name}, changed {ago(facts.now - second)}."
    if any(one.last_change for one in facts.receivers):
        yield from (f"{title}." for one in facts.receivers if (title := _only(one)))
    if not facts.reasons:
        yield from _last(facts, refused)
    for entry in _sporadic(facts):
        yield f"Some requests{_to(_place(facts, entry))} are refused: {_cause(facts, entry)}."
    for one in facts.exporters:
        if one.state == "retrying" or _is_behind(one):
            yield f"{one.name} is {'behind' if _is_behind(one) else one.state}{_waiting(one)}."
    well = sum(one.state in ("idle", "sending") and not _is_behind(one) for one in facts.exporters)
    if 0 < well < len(facts.exporters):
        yield f"{well} of {len(facts.exporters)} exporters {'is' if well == 1 else 'are'} well."
    if facts.dead_letters:
        yield f"{counted(facts.dead_letters, 'dead letter')} kept."


def _not_received(facts: Facts, refused: Sequence[RequestEntry]) -> Iterator[str]:
    """Why webhooks are refused, or at which receivers and ports the last one was."""
    if facts.reasons:
        yield f"Not receiving: {'; '.join(facts.reasons.values())}."
        return
    if without := without_secret(facts):
        have = "has" if len(without) == 1 else "have"
        only = "it only answers" if len(without) == 1 else "they only answer"
        yield f"{', '.join(without)} {have} no signing secret yet: {only} Statsig's URL verification."
    last = {(one.receiver, one.port): one for one in reversed(refused)}
    for one in reversed(last.values()):
        place = _place(facts, one)
        if one.reason != _BARE or one.receiver not in without:
            has_accepted = any(receiver.last_accepted for receiver in _concerned(facts, one))
            state = "refusing requests" if has_accepted else "not receiving"
            who = f"{place if one.receiver else place.capitalize()} is {state}" if place else state.capitalize()
            yield f"{who}: {_cause(facts, one)}."
        if not one.may_be_lost:
            yield f"{_refused(one, place, ago(facts.now - one.last))}."


def _perhaps_lost(facts: Facts) -> Iterator[str]:
    """Which webhooks may never come again, and whether records may be missing."""
    if facts.set_aside:
        yield f"{_DAMAGE}."
    if lost := list(_lost(facts)):
        number, when = sum(one.run for one in lost), ago(facts.now - max(one.last for one in lost))
        answered = _answered(number, " or ".join(map(str, sorted({int(one.status) for one in lost}))))
        if number == 1:
            yield f"{answered} {when}: Statsig may not send it again."
        else:
            yield f"{answered}, the last {when}: Statsig may not send them again."


def _not_delivered(facts: Facts) -> Iterator[str]:
    """Which exporters wait for somebody."""
    for one in facts.exporters:
        if one.state in ("refused", "blocked"):
            because = "whose backend refuses the records" if one.state == "refused" else "which is blocked"
            yield f"Not delivering to {one.name}, {because}{_waiting(one)}."
        if one.state == NOT_CONFIGURED:
            yield f"{one.name} is not configured any more{_waiting(one)}."


def _last(facts: Facts, refused: Sequence[RequestEntry]) -> Iterator[str]:
    """What came last, and where nothing has come."""
    is_refusing = bool(refused)
    now, verified = facts.now, max((one.last_verified for one in facts.receivers), default=0.0)
    if change := max((one.last_change for one in facts.receivers), default=0.0):
        yield f"{'' if is_refusing else 'Receiving. '}Last config change {ago(now - change)}."
    elif any(one.last_accepted for one in facts.receivers):
        instead = "; ".join(filter(None, map(_instead, facts.receivers)))
        only = f", only {instead}" if instead else ""
        yield f"No new config change since the start{only}."
        yield f"Last webhook {ago(now - verified)}."
    elif verified and not is_refusing:
        yield f"No webhook was accepted since the start, {ago(now - facts.since)}."
    elif not is_refusing and not without_secret(facts):
        yield f"Ready. No webhook with a valid signature since the start, {ago(now - facts.since)}."
    told = {one.name for entry in refused for one in _concerned(facts, entry)} | set(without_secret(facts))
    silent = [one.name for one in facts.receivers if not one.last_verified and one.name not in told]
    if verified and silent:
        yield f"Nothing with a valid signature has come to receiver {' or '.join(silent)} since the start."


def without_secret(facts: Facts) -> list[str]:
    """The receivers that need one before any webhook is taken."""
    return [one.name for one in facts.receivers if not one.has_secret]


def _concerned(facts: Facts, entry: RequestEntry) -> list[ReceiverFacts]:
    """The receivers that requests were for: one, or those on the port where they were refused."""
    if entry.receiver:
        return [one for one in facts.receivers if one.name == entry.receiver]
    return [one for one in facts.receivers if not entry.port or one.port in (0, entry.port)]


def _place(facts: Facts, entry: RequestEntry) -> str:
    """Where requests came to, if there are several places: a receiver, or a port."""
    if entry.receiver:
        return entry.receiver if {one.name for one in facts.receivers} != {entry.receiver} else ""
    return f"port {entry.port}" if entry.port and len({one.port for one in facts.receivers}) > 1 else ""


def _elsewhere(facts: Facts, entry: RequestEntry) -> ReceiverFacts | None:
    """The receiver on another port whose path a request for a wrong path had."""
    if entry.reason != "not_found" or not entry.port:
        return None
    others = (one for one in facts.receivers if one.port not in (0, entry.port))
    return next((one for one in others if one.path == entry.path), None)


def _cause(facts: Facts, entry: RequestEntry) -> str:
    return why(entry.reason, entry.detail, entry.path) if _elsewhere(facts, entry) is None else "wrong port"


def _refused(entry: RequestEntry, place: str, when: str = "") -> str:
    if entry.run == 1:
        return f"A request{_to(place)} was refused {when}".rstrip()
    return f"{entry.run} requests{_to(place)} were refused{f', the last {when}' if when else ''}"


def _answered(number: int, status: object, place: str = "") -> str:
    if number == 1:
        return f"A webhook{_to(place)} was answered with {status}"
    return f"{number} webhooks{_to(place)} were answered with {status}"


def _to(place: str) -> str:
    return f" to {place}" if place else ""


def _missed(receiver: ReceiverFacts) -> str:
    number = len(receiver.last_missed)
    return f"{counted(number, 'change')} of the last day in Statsig's audit log never came to receiver {receiver.name}"


def _is_behind(exporter: ExporterFacts) -> bool:
    """Whether it delivers, and what waits has waited for long."""
    is_working = exporter.state in ("idle", "sending")
    return is_working and exporter.oldest is not None and exporter.oldest > _LONG


def _waiting(exporter: ExporterFacts) -> str:
    if exporter.waiting is None:
        return ""
    return f": {counted(exporter.waiting, 'record')} {'waits' if exporter.waiting == 1 else 'wait'}"


def _instead(receiver: ReceiverFacts) -> str:
    """What its webhooks have contained instead of changes that are new."""
    filtered = receiver.ignored.get(CONFIG_CHANGE, 0)
    found = {
        "other event": sum(receiver.ignored.values()) - filtered,
        "filtered change": filtered,
        "duplicate": receiver.duplicates,
        "invalid change": receiver.invalid,
    }
    return ", ".join(counted(number, noun) for noun, number in found.items() if number)


def _refusals(facts: Facts) -> Iterator[RequestEntry]:
    """The refusals of the last day that are not over, since the start, the last ones first.

    Those of a receiver are over once it has accepted a webhook after them. Those of the server count only as long as a
    receiver on its port has got no webhook with a valid signature. Later they are the noise of a public address, as
    what is not sent with POST to a wrong path always is.
    """
    for entry in facts.requests:
        if entry.status == HTTPStatus.OK or entry.last < max(facts.since, facts.now - LOST_FOR):
            continue
        concerned = _concerned(facts, entry)
        if entry.receiver and entry.reason == _NOT_A_WEBHOOK:
            is_open = not any(one.last_accepted for one in concerned)
        elif entry.receiver:
            is_open = any(entry.last >= one.last_accepted for one in concerned)
        else:
            is_open = entry.reason in _FIRST_TO_CHECK and not all(one.last_verified for one in concerned)
        if is_open:
            yield entry


def _sporadic(facts: Facts) -> Iterator[RequestEntry]:
    """The refusals of the last hour by receivers that had accepted webhooks before, and have accepted others since."""
    for entry in facts.requests:
        if entry.follows and not entry.may_be_lost and entry.reason not in _OF_OTHERS:
            since = max(facts.since, facts.now - _HOUR)
            if any(since <= entry.last < one.last_accepted for one in _concerned(facts, entry)):
                yield entry


def _lost(facts: Facts) -> Iterator[RequestEntry]:
    """The webhooks of the last day that may be lost, the last ones first. Later ones do not replace them."""
    for entry in facts.requests:
        if entry.may_be_lost and entry.last > facts.now - LOST_FOR and _concerned(facts, entry):
            yield entry


def troubles(facts: Facts) -> list[Trouble]:
    """What is wrong, the most important first."""
    found = [
        Trouble("Webhooks are refused", f"{reason}. {_MEND.get(word) or check(word)}".rstrip(), facts.now)
        for word, reason in facts.reasons.items()
    ]
    refusals = [entry for entry in _refusals(facts) if not entry.may_be_lost]
    for entry in refusals[:_MOST_REFUSALS]:
        title = f"{_refused(entry, _place(facts, entry))}: {_cause(facts, entry)}"
        found.append(Trouble(title, _advice(facts, entry), entry.last, is_past=True))
    told = {one.receiver for one in refusals if one.reason == _BARE}
    found += [
        Trouble(f"{name} has no signing secret yet", check(_BARE), facts.now, can_wait=True)
        for name in without_secret(facts)
        if name not in told
    ]
    for entry in _lost(facts):
        title = f"{_answered(entry.run, int(entry.status), _place(facts, entry))}: {why(entry.reason, entry.detail)}"
        advice = check(entry.reason, entry.detail, entry.status)
        found.append(Trouble(title, advice, entry.last, is_past=True))
    if facts.set_aside:
        found.append(Trouble(_DAMAGE, _ASIDE.format(", ".join(facts.set_aside)), facts.now))
    found += [trouble for one in facts.exporters if (trouble := _of_exporter(one, facts.now)) is not None]
    found += [trouble for one in facts.receivers if (trouble := _without_change(one)) is not None]
    for one in facts.receivers:
        if one.last_missed:
            named = [f"{name}, {ago(facts.now - second)}" for name, second in one.last_missed[:_MOST_NAMES]]
            found.append(Trouble(_missed(one), f"The last ones: {'; '.join(named)}. {_LOG}", facts.now))
    for entry in _sporadic(facts):
        title = f"Some requests{_to(_place(facts, entry))} are refused: {_cause(facts, entry)}"
        advice = f"{_SPORADIC} {check(entry.reason, entry.detail)}"
        found.append(Trouble(title, advice, entry.last, is_past=True, can_wait=True))
    if facts.dead_letters:
        title = f"{counted(facts.dead_letters, 'dead letter')} kept"
        found.append(Trouble(title, _DEAD_LETTERS, facts.now, can_wait=True))
    return sorted(found, key=lambda trouble: trouble.can_wait)


def _advice(facts: Facts, entry: RequestEntry) -> str:
    """What to check after a refusal, by what is known of the receivers that it was for."""
    if (meant := _elsewhere(facts, entry)) is not None:
        return f"{meant.path} is the path of {meant.name}, which listens on port {meant.port}. {_PORT}"
    if entry.reason == "signature_wrong" and any(one.last_verified for one in _concerned(facts, entry)):
        return f"Webhooks before had the right signature. {ANEW} {COMPARE}"
    concerned = _concerned(facts, entry)
    is_local = entry.reason in _FIRST_TO_CHECK and concerned and all(_LOOPBACK.match(one.url) for one in concerned)
    advice = f"{_HERE if is_local else ''} {check(entry.reason, entry.detail)}".lstrip()
    others = [one.run for one in facts.requests if (one.port, one.reason) == (entry.port, _NOT_A_WEBHOOK)]
    if entry.reason == "not_found" and others:
        advice += f" Not counted here: {counted(sum(others), 'request')} with another method, as scanners send them."
    return advice


def _of_exporter(exporter: ExporterFacts, now: float) -> Trouble | None:
    if exporter.state == NOT_CONFIGURED:
        advice = f"Configure it again to send them; `statsig-otel queue remove {exporter.name}` gives them up."
        return Trouble(f"{exporter.name} is not configured any more{_waiting(exporter)}", advice, now)
    if _is_behind(exporter):
        advice = (
            "They are being sent. If their number does not fall, the backend takes records more slowly than they "
            "arrive."
        )
        title = f"{exporter.name} is behind{_waiting(exporter)}, the oldest for {about(exporter.oldest or 0)}"
        return Trouble(title, advice, now, can_wait=True)
    if exporter.state not in FAILED_STATES:
        return None
    again = (
        "The next webhook tries again."
        if exporter.waiting is None
        else f"{_AGAIN} What waits is kept: {counted(exporter.waiting, 'record')}."
    )
    hint = f"{exporter.hint[0].upper()}{exporter.hint[1:]}." if exporter.hint else ""
    advice = {
        "retrying": hint or "The backend does not answer, fails, or asks to wait.",
        "refused": "The backend refuses the records. Look at what it says, and at its limits.",
        "blocked": f"{hint or 'Repair what is said there.'} After an edit run `statsig-otel reload`.",
    }[exporter.state]
    title = f"{exporter.name} is {exporter.state}: {exporter.last_error or 'its backend takes nothing'}"
    return Trouble(title, f"{advice} {again}", now, can_wait=exporter.state == "retrying")


def _only(receiver: ReceiverFacts) -> str:
    """What has come to a receiver that accepts webhooks, but none with a change; empty for others."""
    if not receiver.last_accepted or receiver.last_change:
        return ""
    return f"No new config change has come to receiver {receiver.name}, only {_instead(receiver) or 'empty webhooks'}"


def _without_change(receiver: ReceiverFacts) -> Trouble | None:
    """A receiver that accepts webhooks, but none with a change."""
    title = _only(receiver)
    if not title:
        return None
    names = sorted(set(receiver.ignored) - {OTHER, CONFIG_CHANGE}, key=lambda name: -receiver.ignored[name])
    listed = f" ({', '.join(names[:_MOST_NAMES])})" if names else ""
    advice = {
        _FILTERS: bool(names or receiver.ignored.get(OTHER)) or not _instead(receiver),
        "The receiver's own filter drops changes.": receiver.ignored.get(CONFIG_CHANGE),
        "No record could be made of the invalid ones: the dead letters below say why.": receiver.invalid,
        "Duplicates are changes that were accepted before.": receiver.duplicates,
    }
    return Trouble(
        f"{title}{listed}",
        " ".join(said for said, applies in advice.items() if applies),
        receiver.last_accepted,
        can_wait=True,
    )
