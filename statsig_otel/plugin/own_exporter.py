"""An exporter that is an object of the embedder's, with what a service has to know of it."""

from inspect import iscoroutinefunction
from typing import Any, Final

from pydantic import Field

from statsig_otel.config.model import Duration
from statsig_otel.plugin.settings.delivery import DeliveryKeys

DEFAULT_TIMEOUT = 30.0
"""Seconds for one `send`."""

_METHODS: Final = ("start", "send", "shutdown")


class OwnExporterSettings(DeliveryKeys):
    """The settings of such an exporter; no file can have them."""

    exporter: Any = Field(description="The exporter, which keeps the Exporter protocol.")
    timeout: Duration = Field(default=DEFAULT_TIMEOUT, gt=0, description="The time for one send.")


def fault_of(exporter: object) -> str | None:
    """What keeps an object from being an exporter, as the end of a sentence that begins with its type."""
    for name in _METHODS:
        method = getattr(exporter, name, None)
        if not callable(method):
            return f"has no {name}()"
        if iscoroutinefunction(method):
            return f"has an async {name}(), and it is called in a thread"
    return None
