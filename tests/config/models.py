"""Components that exist only here: one field for each kind of value, so that every error can be made."""

from datetime import date
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from statsig_otel.config import Duration, Opaque, SettingError, Settings, Size
from statsig_otel.config.configuration import Components


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


def _not_empty(value: Opaque) -> Opaque:
    if not value.reveal():
        raise SettingError("is empty", "paste the secret that Statsig shows")
    return value


class TlsSettings(Settings):
    insecure: bool = False
    cert_file: str = ""
    key_file: str = ""

    @model_validator(mode="after")
    def _check_pair(self) -> "TlsSettings":
        if bool(self.cert_file) != bool(self.key_file):
            raise SettingError("cert_file and key_file belong together", "set both, or neither")
        return self


class ReceiverSettings(Settings):
    endpoint: str = "localhost:8080"
    signing_secrets: list[Annotated[Opaque, AfterValidator(_not_empty)]]
    tolerance: Duration = 300.0
    max_request_body_size: Size = 20 << 20
    tls: TlsSettings | None = None
    resource: dict[str, str | int | bool] = Field(default_factory=dict)


class ExporterSettings(Settings):
    """As much as possible of what a model can hold."""

    endpoint: str = ""
    headers: dict[str, Opaque] = Field(default_factory=dict)
    compression: Literal["gzip", "none"] = "gzip"
    version: Literal["1.2", "1.3"] = "1.2"
    colour: Colour = Colour.RED
    num_consumers: Annotated[int, Field(ge=1, le=10)] = 1
    ratio: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 0.5
    step: Annotated[int, Field(multiple_of=5)] = 5
    name: Annotated[str, Field(min_length=1, max_length=8, pattern=r"^[a-z0-9]+$")] = "a"
    path: Path = Path("/a")
    tls: TlsSettings = Field(default_factory=TlsSettings)
    topics: str | list[str] = ""
    limits: Annotated[list[int], Field(min_length=1, max_length=3)] = Field(default_factory=lambda: [1])
    pair: tuple[int, int] = (1, 2)
    sources: TlsSettings | list[TlsSettings] | None = None
    from_: Annotated[str, Field(alias="from")] = ""
    api_key: Opaque | None = None
    anything: Any = None
    until: date | None = None

    @field_validator("api_key")
    @classmethod
    def _tell(cls, value: Opaque | None) -> Opaque | None:
        """A careless check, which names the secret."""
        if value is not None and value.reveal().startswith("bad"):
            raise SettingError(f"{value.reveal()!r} is no key", f"{value.reveal()} is no key")
        return value


class DebugSettings(Settings):
    verbosity: Literal["basic", "normal", "detailed"] = "basic"


class StorageSettings(Settings):
    directory: str


COMPONENTS: Final = Components(
    receivers={"statsig": ReceiverSettings},
    exporters={"otlp_grpc": ExporterSettings, "otlp_http": ExporterSettings, "debug": DebugSettings},
    extensions={"file_storage": StorageSettings},
    aliases={"otlp": "otlp_grpc", "otlphttp": "otlp_http"},
)
