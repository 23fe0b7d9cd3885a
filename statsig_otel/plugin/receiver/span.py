"""The span of one webhook, by OpenTelemetry's conventions for HTTP servers."""

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from falcon import Request
from opentelemetry.context import attach, detach

from statsig_otel.plugin.receiver.answer import Answer

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

_COUNTS: Final = ("accepted", "duplicates", "ignored", "invalid")


class WebhookSpan:
    """The current span from now on, until `end`. It is the child of a span that the host program has begun."""

    def __init__(self, tracer: "Tracer", req: Request, receiver: str) -> None:
        from opentelemetry.trace import SpanKind, get_current_span, set_span_in_context  # noqa: PLC0415 - see _tracing

        route = f"{req.root_path}{req.uri_template}"
        self._span = tracer.start_span(
            f"{req.method} {route}",
            kind=SpanKind.INTERNAL if get_current_span().get_span_context().is_valid else SpanKind.SERVER,
            attributes={
                "http.request.method": req.method,
                "http.route": route,
                "url.path": f"{req.root_path}{req.path}",
                "url.scheme": req.scheme,
                "statsig_otel.receiver": receiver,
            },
        )
        self._token = attach(set_span_in_context(self._span))

    def end(self, answer: Answer | None) -> None:
        """End it with an answer; None for an unexpected error."""
        from opentelemetry.trace import StatusCode  # noqa: PLC0415 - as above

        detach(self._token)
        if answer is None:
            self._span.set_attribute("error.type", "unexpected")
            self._span.set_status(StatusCode.ERROR)
        else:
            self._span.set_attribute("http.response.status_code", int(answer.status))
            self._span.set_attribute("statsig_otel.reason", answer.reason)
            for word in _COUNTS:
                if isinstance(count := answer.body.get(word), int):
                    self._span.set_attribute(f"statsig_otel.{word}", count)
            if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:  # a 4xx is the client's fault
                self._span.set_attribute("error.type", str(int(answer.status)))
                self._span.set_status(StatusCode.ERROR)
        self._span.end()
