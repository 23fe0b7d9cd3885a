"""What a receiver counts for its metrics: all reasons of its answers, and the names of ignored events."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from statsig_otel._instruments import collecting
from statsig_otel._telemetry import OTHER, ReceiverCounts, counts_of
from statsig_otel.plugin.record.mapper import Mapped
from statsig_otel.plugin.webhook.body import CONFIG_CHANGE, ParsedBody, event_names

STATUS_OF: Final[Mapping[str, HTTPStatus]] = {
    "accepted": HTTPStatus.OK,
    "url_verification": HTTPStatus.OK,
    **dict.fromkeys(
        ("content_length", "truncated", "not_utf8", "not_json", "unknown_shape"),
        HTTPStatus.BAD_REQUEST,
    ),
    **dict.fromkeys(
        (
            "no_secret",
            "signature_missing",
            "signature_repeated",
            "signature_malformed",
            "signature_wrong",
            "timestamp_missing",
            "timestamp_repeated",
            "timestamp_malformed",
            "timestamp_outside_tolerance",
        ),
        HTTPStatus.UNAUTHORIZED,
    ),
    "method": HTTPStatus.METHOD_NOT_ALLOWED,
    "slow_body": HTTPStatus.REQUEST_TIMEOUT,
    "gave_way": HTTPStatus.REQUEST_TIMEOUT,
    "too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "content_encoding": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "unexpected": HTTPStatus.INTERNAL_SERVER_ERROR,
    **dict.fromkeys(
        (
            "queue_full",
            "disk_full",
            "storage_failed",
            "exporter_failed",
            "not_kept",
            "slow_consumer",
            "in_flight_bytes",
            "not_running",
            "shutting_down",
        ),
        HTTPStatus.SERVICE_UNAVAILABLE,
    ),
}
"""The reasons that a service gives for its answers, each with its status. Consumers of an embedder have their own."""


def begin_counts(receiver: str, secrets: int) -> ReceiverCounts:
    """The numbers of a receiver. Each begins at 0, so that its first increase is one.

    Args:
        receiver: The receiver's id.
        secrets: The number of its signing secrets.
    """
    counts = counts_of(receiver)
    with counts.lock:
        for reason, status in STATUS_OF.items():
            counts.answers.setdefault((status, reason), 0)
        for position in range(1, secrets + 1):
            counts.verified.setdefault(position, 0)
    return counts


def ignored_names(body: bytes, parsed: ParsedBody, mapped: Mapped) -> dict[str, int]:
    """The ignored items of a body, by the names of their events.

    They are looked for once somebody collects metrics. Before that, and where they can't be read, they are `other`.
    """
    names = {**(event_names(body) if parsed.ignored and collecting.has_begun else {})}
    names.pop("", None)  # an empty attribute is none to Prometheus
    rest = parsed.ignored - sum(names.values())
    if rest < 0:  # two readers disagree about the body
        names, rest = {}, parsed.ignored
    filtered = mapped.ignored - parsed.ignored
    return {**names, OTHER: rest + names.get(OTHER, 0), CONFIG_CHANGE: filtered}
