"""The settings of the `health_check` extension, with the Collector's names."""

from collections.abc import Mapping
from typing import ClassVar, Final

from pydantic import Field, field_validator

from statsig_otel.config.model import Settings
from statsig_otel.plugin.settings.addresses import ListenEndpoint, address_of, check_path

_LOCAL: Final = "leave it out: it listens on localhost; let a proxy in front of it add that"


class ResponseBodySettings(Settings):
    """`response_body`: what the answers at `path` contain."""

    healthy: str = Field(default="", description="The answer while the service runs.")
    unhealthy: str = Field(default="", description="The answer before that, and while it stops.")


class HealthCheckSettings(Settings):
    """The `health_check` extension: says whether the service takes webhooks, and whether a restart would help."""

    unsupported: ClassVar[Mapping[str, str]] = {
        "auth": _LOCAL,
        "check_collector_pipeline": "leave it out: a backend that is away is what the queue is for; /readyz names it",
        "cors": _LOCAL,
        "response_headers": _LOCAL,
        "tls": _LOCAL,
    }
    implied: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "auth": ({},),
        "check_collector_pipeline": ({"enabled": False},),
        "cors": ({},),
        "response_headers": ({},),
    }

    endpoint: ListenEndpoint = Field(default="localhost:13133", description="Where to listen, as host:port.")
    path: str = Field(default="/", description="Where the Collector's health check is. /livez and /readyz stay.")
    response_body: ResponseBodySettings | None = Field(
        default=None, description="What the answers at `path` contain; without it, the Collector's JSON."
    )

    @field_validator("path")
    @classmethod
    def _check_path(cls, path: str) -> str:
        return check_path(path, "/")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the endpoint."""
        return address_of(self.endpoint)
