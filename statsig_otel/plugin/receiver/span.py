"""The span of one webhook, by OpenTelemetry's conventions for HTTP servers."""

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from falcon import Request

from statsig_otel._tracing import CurrentSpan
from statsig_otel.plugin.receiver.answer import Answer

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

_COUNTS: Final = ("accepted", "duplicates", "ignored", "invalid")


class WebhookSpan:
    """The current span from now on, until `end`. It is the child of a span that the host program has begun."""

    def __init__(self, tracer: "Tracer", req: Request, receiver: str) -> None:
        route = f"{req.root_path}{req.uri_template or req.path}"
        attributes = {
            "http.request.method": req.method,
            "http.route": route,
            "url.path": f"{req.root_path}{req.path}",
            "url.scheme": req.scheme,
            "statsig_otel.receiver": receiver,
        }
        self._span = CurrentSpan(tracer, f"{req.method} {route}", "SERVER", attributes)

    def end(self, answer: Answer | None) -> None:
        """End it with an answer; None for an unexpected error."""
        if answer is None:
            self._span.end({"error.type": "unexpected"}, failed="")
            return
        attributes: dict[str, str | int] = {
            "http.response.status_code": int(answer.status),
            "statsig_otel.reason": answer.reason,
        }
        for word in _COUNTS:
            if isinstance(count := answer.body.get(word), int):
                attributes[f"statsig_otel.{word}"] = count
        if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:  # a 4xx is the client's fault
            self._span.end({**attributes, "error.type": str(int(answer.status))}, failed="")
        else:
            self._span.end(attributes)
