"""An exporter that is an object of the embedder's, with what a service has to know of it."""

from typing import Any

from pydantic import Field

from statsig_otel.config.model import Duration
from statsig_otel.plugin.delivery_settings import DeliveryKeys

DEFAULT_TIMEOUT = 30.0
"""Seconds for one `send`."""


class OwnExporterSettings(DeliveryKeys):
    """The settings of such an exporter; no file can have them."""

    exporter: Any = Field(description="The exporter, which keeps the Exporter protocol.")
    timeout: Duration = Field(default=DEFAULT_TIMEOUT, gt=0, description="The time for one send.")
