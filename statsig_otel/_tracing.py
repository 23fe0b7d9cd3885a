"""Decides whether spans are made, and remembers which span a change came with, so that its delivery has a link to it.

Without a `tracer`, which is the default, nothing is made and nothing remembered. Only opentelemetry-api is imported,
and its part for traces not before it is needed: commands would start a tenth slower.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from statsig_otel import __version__
from statsig_otel._telemetry import SCOPE

if TYPE_CHECKING:
    from opentelemetry.trace import Link, SpanContext, Tracer, TracerProvider

_MOST_REMEMBERED: Final = 4096
"""The changes whose spans are remembered: about 2 MB. A change that waits behind more of them has no link."""

_MOST_LINKS: Final = 128
"""The most links of a span, as in the SDK: it would drop the first ones and keep the last."""


class _Tracing:
    """The tracer of the process. None makes no spans."""

    tracer: "Tracer | None" = None


tracing: Final = _Tracing()

_spans: Final["OrderedDict[bytes, SpanContext]"] = OrderedDict()  # by uid; each call of it is atomic


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
