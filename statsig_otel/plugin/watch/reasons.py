"""Says why a request was refused and what to check, by the reason of its answer."""

from collections.abc import Mapping
from typing import Final

from statsig_otel._journal import SERVER_ERROR
from statsig_otel.plugin.webhook.secret import SECRETS_SETTING, THEN_RELOAD

COMPARE: Final = (
    f"Compare {SECRETS_SETTING} with the secret that Statsig's console shows for this webhook (Settings > Integrations "
    "> Generic Webhook)."
)
_KEY: Final = (
    f"{COMPARE} If they differ, correct it. {THEN_RELOAD} A secret in a file of its own needs neither. If they are the "
    "same, perhaps a proxy changes the body on the way, or somebody else has sent this."
)
ANEW: Final = "Was a new secret generated for the webhook, or does a second webhook use this URL?"
_PROXY: Final = "Look at what the proxies between Statsig and this service do with the request."
_CLOCK: Final = (
    "Compare this machine's clock with another one: a time service, such as chrony or systemd-timesyncd, keeps it "
    "right."
)
_URL: Final = (
    "Correct the webhook's URL in Statsig's console (Settings > Integrations > Generic Webhook), what a proxy in "
    "between makes of it, or the receiver's path."
)
_LOST: Final = (
    "Statsig may not send such a webhook again: `statsig-otel reconcile` shows which changes never came. Without it, "
    "compare with the changes in Statsig's console."
)
_KEPT: Final = (
    "Its signature is right. With a queue it is kept as a dead letter: see below. Without one only the log has its "
    "beginning."
)
_UNKEPT: Final = (
    "If it is too large, raise max_record_bytes. If it can't be read, please report it: the log has its beginning. An "
    "exporter with a queue keeps such a change as a dead letter."
)
_OVERLOAD: Final = "Look at the exporters below: what waits for them fills the queue."
_PLAIN: Final = (
    "Let the proxy in front speak plain HTTP (http://) to this port. If there is none, put one with a certificate in "
    "front, or set the receiver's tls."
)

WORDS_OF: Final[Mapping[str, tuple[str, str]]] = {
    "signature_wrong": ("the signature does not match", _KEY),
    "signature_missing": ("there is no signature", f"Statsig signs each webhook. Who sends this? {_PROXY}"),
    "signature_repeated": ("there are several signatures", _PROXY),
    "signature_malformed": ("the signature does not have Statsig's form", f"Who sends this? {_PROXY}"),
    "timestamp_missing": ("there is no time", f"Statsig adds X-Statsig-Request-Timestamp. {_PROXY}"),
    "timestamp_repeated": ("there are several times", _PROXY),
    "timestamp_malformed": ("the time does not have Statsig's form", f"Who sends this? {_PROXY}"),
    "timestamp_outside_tolerance": ("wrong time", _CLOCK),
    "no_secret": (
        "no signing secret is set yet",
        f"Copy the webhook's signing secret from Statsig's console into {SECRETS_SETTING}. {THEN_RELOAD}",
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
    "not_kept": ("no record can be made of a change, and without a queue nothing keeps it", _UNKEPT),
    "not_json": ("the body is not JSON", _KEPT),
    "not_utf8": ("the body is not UTF-8", _KEPT),
    "unknown_shape": ("the body is not a webhook of a known form", _KEPT),
    "unexpected": ("an unexpected error of this service", "The log has its traceback: please report it."),
    "shutting_down": ("the service was stopping", "Let a stop take long enough, or let another instance take over."),
}
"""By the reason of a refusal, why a request was refused, and what to check."""

_DETAILED: Final = frozenset(
    {
        *("timestamp_outside_tolerance", "timestamp_malformed", "signature_malformed", "not_found", "not_http"),
        *("tls_handshake", "queue_full", "disk_full", "storage_failed", "exporter_failed", "not_json", "unknown_shape"),
        "not_kept",
    }
)
"""The reasons whose detail says more, such as a number or a path."""

_TOLD_FIRST: Final = {"timestamp_outside_tolerance": ", and "}
"""The reasons whose detail begins with what a headline needs, and what ends that. No string from outside is in it."""

_LASTING: Final = frozenset({"queue_full", "disk_full", "storage_failed"})
"""The reasons of 5xx that are conditions of the service. While one lasts it is listed by itself, with what to do."""

_NAMED: Final = frozenset({"exporter_failed", "timestamp_outside_tolerance"})
"""Those whose detail begins with an id or a setting, which keeps its small letters."""


def why(reason: str, detail: str = "", path: str = "") -> str:
    """Why a request was refused, as a clause: `wrong path: a request came to /hook`.

    Args:
        reason: The reason of the answer.
        detail: What happened.
        path: The path of the request, if it led to no receiver.
    """
    if reason not in WORDS_OF:
        return detail or reason
    words, first = WORDS_OF[reason][0], _first(reason, detail)
    if reason == "not_found" and path:
        first = f"a request came to {path}"
    return f"{words}: {first}" if first else words


def _first(reason: str, detail: str) -> str:
    """What `why` tells of the detail."""
    end = _TOLD_FIRST.get(reason)
    return detail.partition(end)[0] if end and end in detail else ""


def check(reason: str, detail: str = "", status: int = 0) -> str:
    """What to check after a refusal; empty if nothing is known but what `why` says.

    Args:
        reason: The reason of the answer.
        detail: What happened.
        status: The HTTP status of the answer. After 5xx the webhook may be lost, and this says what to do about that.
    """
    shown, (_, advice) = "", WORDS_OF.get(reason, ("", ""))
    if first := _first(reason, detail):
        detail = detail[len(first) + len(_TOLD_FIRST[reason]) :]
    if detail and reason in _DETAILED:
        is_past = status >= SERVER_ERROR and reason in _LASTING
        first = f"At that time {detail[0]}" if is_past else detail[0] if reason in _NAMED else detail[0].upper()
        shown = f"{first}{detail[1:]}{'' if detail[-1] in '.?!' else '.'}"
        advice = "" if is_past else advice
    return " ".join(filter(None, (shown, advice, _LOST if status >= SERVER_ERROR else "")))
