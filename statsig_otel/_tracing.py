"""Makes spans, and remembers which span a change came with, so that its delivery has a link to it.

Without a `tracer`, which is the default, nothing is made and nothing remembered. Only opentelemetry-api is imported,
and its part for traces not before it is needed: commands would start a tenth slower.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from opentelemetry.context import attach, detach

from statsig_otel import __version__
from statsig_otel._log_throttle import LogThrottle
from statsig_otel._telemetry import SCOPE

if TYPE_CHECKING:
    from opentelemetry.trace import Link, Span, SpanContext, Tracer, TracerProvider

_throttle: Final = LogThrottle(logging.getLogger(__name__))

_MOST_REMEMBERED: Final = 4096
"""The changes whose spans are remembered: about 2 MB. A change that waits behind more of them has no link."""

_MOST_LINKS: Final = 128
"""The most links of a span, as in the SDK: it would drop the first ones and keep the last."""


class _Tracing:
    """The tracer of the process. None makes no spans."""

    tracer: "Tracer | None" = None


tracing: Final = _Tracing()

_spans: Final["OrderedDict[bytes, SpanContext]"] = OrderedDict()  # by uid; each call of it is atomic


class CurrentSpan:
    """A span that is the current one until `end`.

    What the tracer or a processor of the host program raises is logged, and harms no webhook and no delivery.

    Args:
        tracer: The tracer.
        name: The name of the span.
        kind: `SERVER` or `CLIENT`. A server's span below another one of the host program is internal.
        attributes: Its attributes.
        links: Links to other spans.
    """

    def __init__(
        self,
        tracer: "Tracer",
        name: str,
        kind: str,
        attributes: Mapping[str, str | int],
        links: "Sequence[Link]" = (),
    ) -> None:
        from opentelemetry.trace import SpanKind, get_current_span, set_span_in_context  # noqa: PLC0415 - see above

        self._span: Span | None = None
        if kind == "SERVER" and get_current_span().get_span_context().is_valid:
            kind = "INTERNAL"
        try:
            span = tracer.start_span(name, kind=SpanKind[kind], attributes=attributes, links=links)
        except Exception as error:  # noqa: BLE001 - the host program's
            _log(error)
            return
        self._span, self._token = span, attach(set_span_in_context(span))

    def end(self, attributes: Mapping[str, str | int], *, failed: str | None = None) -> None:
        """End it.

        Args:
            attributes: More attributes.
            failed: What went wrong; None if nothing did.
        """
        from opentelemetry.trace import StatusCode  # noqa: PLC0415 - see above

        if self._span is None:
            return
        detach(self._token)
        try:
            self._span.set_attributes(attributes)
            if failed is not None:
                self._span.set_status(StatusCode.ERROR, failed or None)
            self._span.end()
        except Exception as error:  # noqa: BLE001 - the host program's
            _log(error)


def _log(error: Exception) -> None:
    _throttle.log(logging.ERROR, "span", "A span can't be made: unexpected %s: %s", type(error).__name__, error)


def begin(provider: "TracerProvider") -> None:
    """Make spans of all webhooks and deliveries of this process from now on."""
    tracing.tracer = provider.get_tracer(SCOPE, __version__)


def remember(uids: Iterable[str]) -> None:
    """Remember that changes came with the current span. Of a change that comes again the first span counts."""
    from opentelemetry.trace import get_current_span  # noqa: PLC0415 - see above

    span = get_current_span().get_span_context()
    if not span.is_valid:
        return
    for uid in uids:
        _spans.setdefault(bytes.fromhex(uid), span)
        if len(_spans) > _MOST_REMEMBERED:
            _spans.popitem(last=False)


def links_of(uids: Iterable[bytes]) -> "list[Link]":
    """Links to the spans that changes came with, as far as they are remembered; none while no spans are made."""
    if tracing.tracer is None:
        return []
    from opentelemetry.trace import Link  # noqa: PLC0415 - see above

    spans = {span.span_id: span for uid in uids if (span := _spans.get(uid)) is not None}
    return [Link(span) for span in [*spans.values()][:_MOST_LINKS]]
