"""Says in plain words how a service is, what its set-up still needs, and what is wrong. Pure functions of `Facts`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, NamedTuple

from statsig_otel._journal import RequestEntry
from statsig_otel._telemetry import NOT_CONFIGURED, OTHER
from statsig_otel.exporters.wording import ago, counted
from statsig_otel.plugin.webhook.body import CONFIG_CHANGE

_HOUR: Final = 3600.0
_MOST_NAMES: Final = 3
_MOST_PROBLEMS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverFacts:
    """What is known of a receiver. Times are in seconds since the epoch, and 0 for never.

    Attributes:
        name: Its id.
        path: The path that webhooks are sent to.
        has_secret: Whether it has a signing secret.
        last_verified: When the last webhook with a valid signature arrived.
        last_change: When the last accepted change arrived.
        clock_difference: The timestamp of the last webhook with a valid signature, less the time when it arrived, in
            seconds.
        answers: The requests, by the reason of their answers.
        ignored: The ignored items, by the name of their event.
        duplicates: The changes that had been accepted before.
        invalid: The changes that no record could be made of.
        missed: The changes of Statsig's audit log that no webhook brought; None if the log is not read.
        last_missed: The names of those of the last day, newest first, with the time of each.
    """

    name: str
    path: str = ""
    has_secret: bool = True
    last_verified: float = 0.0
    last_change: float = 0.0
    clock_difference: float = 0.0
    answers: Mapping[str, int] = field(default_factory=dict)
    ignored: Mapping[str, int] = field(default_factory=dict)
    duplicates: int = 0
    invalid: int = 0
    missed: int | None = None
    last_missed: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExporterFacts:
    """What is known of an exporter.

    Attributes:
        name: Its id.
        state: One of `_telemetry.EXPORTER_STATES`, or `stopped`.
        waiting: The records that wait for it; None if it has no queue, and a webhook waits for it.
        oldest: Seconds since the webhook of the oldest of them arrived; None if none waits.
        attempts: The failed attempts to send the head.
        last_error: What its backend said last; empty while all is well.
        delivered: The records that its backend has taken.
        delivered_last_minute: Those of the last minute.
    """

    name: str
    state: str = "idle"
    waiting: int | None = 0
    oldest: float | None = None
    attempts: int = 0
    last_error: str = ""
    delivered: int = 0
    delivered_last_minute: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a service.

    Attributes:
        now: The time, in seconds since the epoch.
        since: When it started.
        reasons: Why it refuses webhooks: a sentence for each reason.
        receivers: Its receivers.
        exporters: Its exporters.
        dead_letters: The dead letters that are kept.
        requests: Of each receiver and reason the last requests, newest first, and how many there were since the last
            webhook with a valid signature.
    """

    now: float
    since: float = 0.0
    reasons: Mapping[str, str] = field(default_factory=dict)
    receivers: Sequence[ReceiverFacts] = ()
    exporters: Sequence[ExporterFacts] = ()
    dead_letters: int = 0
    requests: Sequence[RequestEntry] = ()


class Step(NamedTuple):
    """A step of the set-up."""

    text: str
    is_done: bool
    is_current: bool


class Trouble(NamedTuple):
    """Something that is wrong.

    Attributes:
        title: What has happened.
        check: What to check, and what to do.
        at: When it happened last, in seconds since the epoch.
        is_past: Whether that was a request, and is not a state that lasts.
        is_passing: Whether it mends itself once a backend is well again.
    """

    title: str
    check: str
    at: float
    is_past: bool = False
    is_passing: bool = False


_COMPARE: Final = (
    "Compare signing_secrets with the secret that Statsig's console shows for this webhook (Settings > Integrations > "
    "Generic Webhook)."
)
_KEY: Final = f"{_COMPARE} If they are the same, a proxy changes the body on the way."
_ANEW: Final = "Was the webhook's secret made anew, or does a second webhook use this URL?"
_PROXY: Final = "Look at what the proxies between Statsig and this service do with the request."
_CLOCK: Final = (
    "Compare this machine's clock with another one: a time service, such as chrony or systemd-timesyncd, keeps it "
    "right. If it is right, look for what holds webhooks back."
)
_URL: Final = (
    "Correct the webhook's URL in Statsig's console (Settings > Integrations > Generic Webhook), the receiver's path, "
    "or what a proxy in between makes of it."
)
_FILTERS: Final = (
    "In Statsig's console (Settings > Integrations > Generic Webhook), open Filters and choose Config Changes. "
    "Then change a gate that nobody uses: perhaps nothing has changed yet."
)
_LOG: Final = (
    "`statsig-otel reconcile` shows them, and what the audit log says about the webhook, such as a new signing secret."
)
_OVERLOAD: Final = "Statsig may not send it again. Look at the exporters below: what waits for them fills the queue."
_PLAIN: Final = (
    "Put a proxy with a certificate in front of this port, or set the receiver's tls. A proxy that is there already "
    "has to speak plain HTTP to this port. Only to try it without TLS, begin the URL with http://."
)

REASONS: Final[Mapping[str, tuple[str, str]]] = {
    "signature_wrong": ("the signature does not match", _KEY),
    "signature_missing": ("there is no signature", f"Statsig signs each webhook. Who sends this? {_PROXY}"),
    "signature_repeated": ("there are several signatures", _PROXY),
    "signature_malformed": ("the signature does not have Statsig's form", f"Who sends this? {_PROXY}"),
    "timestamp_missing": ("there is no time", f"Statsig adds X-Statsig-Request-Timestamp. {_PROXY}"),
    "timestamp_repeated": ("there are several times", _PROXY),
    "timestamp_malformed": ("the time does not have Statsig's form", f"Who sends this? {_PROXY}"),
    "timestamp_outside_tolerance": ("the webhook's time is too far from this machine's clock", _CLOCK),
    "no_secret": (
        "no signing secret is set yet",
        "Copy the webhook's signing secret from Statsig's console into signing_secrets, and reload or restart.",
    ),
    "not_found": ("wrong path", _URL),
    "method": ("the method is not POST", "Statsig sends POST. A browser that opens the URL sends GET."),
    "tls": ("the sender speaks TLS to a port that serves plain HTTP", _PLAIN),
    "tls_handshake": ("the TLS handshake failed", "Check the certificate, and whether the URL begins with https://."),
    "http2": ("it was sent with HTTP/2", "Let the proxy in front speak HTTP/1.1 to this port."),
    "proxy_protocol": ("the PROXY protocol is not understood", "Switch that off in the load balancer."),
    "not_http": ("it was not HTTP", "Who sends this? Most often it is a scanner, which can be ignored."),
    "content_encoding": ("the body is compressed", f"Statsig does not compress. {_PROXY}"),
    "too_large": ("the body is too large", "If Statsig sent it, raise max_request_body_size."),
    "slow_body": ("the body did not arrive in time", "Look at the network and the proxy, or raise read_timeout."),
    "truncated": ("the body ended early", "The sender or a proxy closed the connection."),
    "queue_full": ("the queue is full", _OVERLOAD),
    "disk_full": ("the disk is full", "Free space on the disk of the queue's directory."),
    "storage_failed": ("the queue could not be written", "Look at the disk of the queue's directory, and the log."),
    "exporter_failed": ("an exporter without a queue could not deliver", "Repair its backend, or give it a queue."),
    "not_json": ("the body is not JSON", f"Who sends this? {_PROXY}"),
    "not_utf8": ("the body is not UTF-8", f"Who sends this? {_PROXY}"),
    "unknown_shape": ("the body is not a webhook of a known form", "It is kept as a dead letter: see below."),
    "shutting_down": ("the service was stopping", "Statsig may not send it again."),
}
"""By the reason of a refusal, why a request was refused, and what to check."""

_DETAILED: Final = frozenset(
    {
        *("timestamp_outside_tolerance", "timestamp_malformed", "signature_malformed", "not_found", "not_http"),
        *("tls_handshake", "queue_full", "disk_full", "storage_failed", "exporter_failed", "not_json", "unknown_shape"),
    }
)
"""The reasons whose detail says more, such as a number or a path."""

_FIRST_TO_CHECK: Final = frozenset({"not_found", "tls", "tls_handshake", "http2", "proxy_protocol"})
"""Reasons of refusals by the server that are worth a word until the first webhook with a valid signature arrives."""

_AGAIN: Final = "The service tries again by itself; Try now does it at once."

_REPAIRS: Final = {
    "Replace the key (headers)": ("HTTP 401", "UNAUTHENTICATED"),
    "Let the key (headers) write logs, or replace it": ("HTTP 403", "PERMISSION_DENIED"),
    "Correct the address (endpoint)": ("HTTP 404", "UNIMPLEMENTED"),
}
"""What to repair, by how the answer of the backend begins."""

_AT_FAULT: Final = ("retrying", "refused", "blocked")


def why(reason: str, detail: str = "") -> str:
    """Why a request was refused, as a clause: `it was signed with ...`."""
    return REASONS[reason][0] if reason in REASONS else detail or reason


def check(reason: str, detail: str = "") -> str:
    """What to check after a refusal; empty if nothing is known but what `why` says."""
    if reason not in REASONS:
        return ""
    shown = f"{detail[0].upper()}{detail[1:]}. " if detail and reason in _DETAILED else ""
    return f"{shown}{REASONS[reason][1]}"


def sentence(facts: Facts) -> str:
    """How the service is, in one or a few short sentences."""
    return " ".join(sentences(facts))


def sentences(facts: Facts) -> Iterator[str]:
    """The sentences of `sentence`: what is wrong, then what came last, then what mends itself."""
    refused = next(_refusals(facts), None)
    yield from _not_received(facts, refused)
    for one in facts.exporters:
        if one.state in ("refused", "blocked"):
            yield f"Not delivering to {one.name}, which is {one.state}{_waiting(one)}."
        if one.state == NOT_CONFIGURED:
            yield f"{one.name} is not configured any more{_waiting(one)}."
    for receiver in facts.receivers:
        if receiver.last_missed:
            name, second = receiver.last_missed[0]
            yield f"{_missed(receiver)}, the last one {name}, changed {ago(facts.now - second)}."
    if not facts.reasons:
        yield from _last(facts, is_refusing=refused is not None)
    for one in facts.exporters:
        if one.state == "retrying":
            yield f"{one.name} is retrying{_waiting(one)}."
    if facts.dead_letters:
        yield f"{counted(facts.dead_letters, 'dead letter')} held."


def _not_received(facts: Facts, refused: RequestEntry | None) -> Iterator[str]:
    """Why webhooks are refused, or the last one was."""
    if facts.reasons:
        yield f"Not receiving: {'; '.join(facts.reasons.values())}."
        return
    if without := _without_secret(facts):
        yield f"{', '.join(without)} has no signing secret yet: it only answers Statsig's URL verification."
    if refused is not None:
        if not without or refused.reason != "no_secret":
            cause = why(refused.reason, refused.detail)
            yield f"{'Refusing requests' if _last_verified(facts) else 'Not receiving'}: {cause}."
        yield f"{_refused(refused, ago(facts.now - refused.at))}."


def _last(facts: Facts, *, is_refusing: bool) -> Iterator[str]:
    """What came last."""
    now, verified = facts.now, _last_verified(facts)
    if change := max((one.last_change for one in facts.receivers), default=0.0):
        yield f"{'' if is_refusing else 'Receiving. '}Last config change {ago(now - change)}."
    elif verified:
        instead = "; ".join(filter(None, map(_instead, facts.receivers)))
        only = f", only {instead}" if instead else ""
        yield f"No new config change since the start{only}."
        yield f"Last webhook {ago(now - verified)}."
    elif not is_refusing and not _without_secret(facts):
        yield f"Ready. No webhook with a valid signature since the start, {ago(now - facts.since)}."


def _last_verified(facts: Facts) -> float:
    return max((one.last_verified for one in facts.receivers), default=0.0)


def _without_secret(facts: Facts) -> list[str]:
    """The receivers that need one before any webhook is taken."""
    return [] if _last_verified(facts) else [one.name for one in facts.receivers if not one.has_secret]


def _refused(entry: RequestEntry, when: str = "") -> str:
    if entry.count == 1:
        return f"A request was refused {when}".rstrip()
    return f"{entry.count} requests were refused{f', the last {when}' if when else ''}"


def _missed(receiver: ReceiverFacts) -> str:
    number = len(receiver.last_missed)
    return f"{counted(number, 'change')} of the last day in Statsig's audit log never came to {receiver.name}"


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
    """The refusals since the start and since the last webhook with a valid signature.

    Those of the server count only as long as there was no such webhook. Later they are the noise of a public address.
    """
    verified = _last_verified(facts)
    for entry in facts.requests:
        is_ours = entry.receiver or (not verified and entry.reason in _FIRST_TO_CHECK)
        if entry.status != HTTPStatus.OK and is_ours and entry.at >= max(verified, facts.since):
            yield entry


def steps(facts: Facts) -> list[Step]:
    """The steps of the set-up; none once it is complete."""
    receivers = facts.receivers
    has_change = any(one.last_change for one in receivers)
    has_verified = has_change or any(one.last_verified for one in receivers)
    delivered = any(one.delivered for one in facts.exporters)
    paths = " or ".join(one.path for one in receivers)
    done = {
        f"A request, such as Statsig's URL verification, reaches the URL that ends with {paths}": has_verified
        or any(one.answers for one in receivers),
        "A signing secret is set": bool(receivers) and all(one.has_secret for one in receivers),
        "A signed webhook is accepted": has_verified,
        "It has a config change": has_change,
        "A change is delivered": delivered,
    }
    if all(done.values()):
        return []
    current = next(text for text, is_done in done.items() if not is_done)
    return [Step(text, is_done, text == current) for text, is_done in done.items()]


def troubles(facts: Facts) -> list[Trouble]:
    """What is wrong, the most important first."""
    found = [Trouble("Webhooks are refused", f"{reason}.", facts.now) for reason in facts.reasons.values()]
    found += [trouble for one in facts.exporters if (trouble := _of_exporter(one, facts.now)) is not None]
    found += [trouble for one in facts.receivers if (trouble := _without_change(one)) is not None]
    for one in facts.receivers:
        if one.last_missed:
            named = [f"{name}, {ago(facts.now - second)}" for name, second in one.last_missed[:_MOST_NAMES]]
            found.append(Trouble(_missed(one), f"The last ones: {'; '.join(named)}. {_LOG}", facts.now))
    for entry in _refusals(facts):
        if entry.at > facts.now - _HOUR:
            title = f"{_refused(entry)}: {why(entry.reason, entry.detail)}"
            advice = check(entry.reason, entry.detail)
            if entry.reason == "signature_wrong" and any(one.last_verified for one in facts.receivers):
                advice = f"Webhooks before had the right signature. {_ANEW} {_COMPARE}"
            found.append(Trouble(title, advice, entry.at, is_past=True))
    return sorted(found, key=lambda trouble: trouble.is_passing)[:_MOST_PROBLEMS]


def _of_exporter(exporter: ExporterFacts, now: float) -> Trouble | None:
    if exporter.state == NOT_CONFIGURED:
        advice = f"Configure it again to send them; `statsig-otel queue remove {exporter.name}` gives them up."
        return Trouble(f"{exporter.name} is not configured any more{_waiting(exporter)}", advice, now)
    if exporter.state not in _AT_FAULT:
        return None
    again = (
        "The next webhook is a try."
        if exporter.waiting is None
        else f"{_AGAIN} Waiting: {counted(exporter.waiting, 'record')}. None is lost."
    )
    advice = {
        "retrying": "The backend does not answer, or asks to wait.",
        "refused": "The backend refuses the records. Look at what it says, and at its limits.",
        "blocked": f"{_repair(exporter.last_error)}, and reload.",
    }[exporter.state]
    title = f"{exporter.name} is {exporter.state}: {exporter.last_error or 'its backend takes nothing'}"
    return Trouble(title, f"{advice} {again}", now, is_passing=exporter.state == "retrying")


def _repair(error: str) -> str:
    """What repairs a blocked exporter whose backend said this."""
    return next(
        (repair for repair, beginnings in _REPAIRS.items() if error.startswith(beginnings)),
        "Repair the key (headers), the address (endpoint) or the certificate (tls)",
    )


def _without_change(receiver: ReceiverFacts) -> Trouble | None:
    """A receiver that gets webhooks, but none with a change."""
    if not receiver.last_verified or receiver.last_change:
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
        f"No new config change has come to {receiver.name}, only {_instead(receiver) or 'empty webhooks'}{listed}",
        " ".join(said for said, applies in advice.items() if applies),
        receiver.last_verified,
    )
