"""The `service::telemetry` settings, with the Collector's names."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from statsig_otel._journal import DEFAULT_BYTES, DEFAULT_ENTRIES, MOST_ENTRIES
from statsig_otel.config.errors import SettingError
from statsig_otel.config.model import Settings
from statsig_otel.config.units import Size
from statsig_otel.plugin.settings.metrics import MetricsSettings, any_case
from statsig_otel.plugin.settings.traces import TracesSettings

LogLevel = Literal["debug", "info", "warn", "error"]
LogEncoding = Literal["console", "json"]

_STDERR: Final = "leave it out: the log goes to standard error; let the supervisor of the service send it elsewhere"
_FEWEST_BYTES: Final = 64 << 10
_MOST_BYTES: Final = 256 << 20
_LEVELS: Final[Mapping[str, LogLevel]] = {
    "debug": "debug", "info": "info", "warn": "warn", "warning": "warn", "error": "error"
}  # fmt: skip


_LEVEL_SCHEMA: Final = {
    "anyOf": [
        {"enum": ["debug", "info", "warn", "error"]},
        {"type": "string", "pattern": rf"^\s*({any_case(_LEVELS)})\s*$"},
        {"type": "null"},
    ]
}


def named_level(word: str | None) -> LogLevel | None:
    """The level that a word means, in any case; None if it is not a level."""
    return _LEVELS.get((word or "").strip().lower())


def _log_level(value: object) -> object:
    if isinstance(value, str) and value.lower() in ("dpanic", "panic", "fatal"):
        raise SettingError(f"there is no level {value.lower()} here", "use error, the highest")
    return named_level(value) or value if isinstance(value, str) else value


class LogsSettings(Settings):
    """`service::telemetry::logs`: the service's own log."""

    unsupported: ClassVar[Mapping[str, str]] = {
        "development": "leave it out: level: debug says the most there is",
        "disable_caller": "leave it out: lines name the part of the service, not the caller",
        "disable_stacktrace": "leave it out: only what nobody expected has a stack trace",
        "error_output_paths": _STDERR,
        "initial_fields": "leave it out: what collects the log can add fields",
        "output_paths": _STDERR,
        "processors": "leave it out: the log goes to standard error; a Collector's filelog receiver can read it",
        "sampling": "leave it out: what repeats itself is throttled",
    }
    implied: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "development": (False,),
        "disable_caller": (True,),
        "error_output_paths": (["stderr"],),
        "initial_fields": ({},),
        "output_paths": (["stderr"],),
        "processors": ([],),
    }

    level: Annotated[LogLevel | None, BeforeValidator(_log_level), WithJsonSchema(_LEVEL_SCHEMA)] = Field(
        default=None, description="What is logged. Without it: OTEL_LOG_LEVEL, else info."
    )
    encoding: LogEncoding = Field(default="console", description="Lines of text, or one JSON object a line.")


class JournalSettings(Settings):
    """`service::telemetry::journal`: how much of what happened last is kept in memory, for `top` and the live page."""

    max_entries: int = Field(
        default=DEFAULT_ENTRIES,
        ge=1,
        le=MOST_ENTRIES,
        description="The most entries of each kind: accepted requests, refused ones, config changes, attempts to send. "
        "Requests of one second with the same verdict are one entry, and so are attempts.",
    )
    max_bytes: Size = Field(
        default=DEFAULT_BYTES,
        ge=_FEWEST_BYTES,
        le=_MOST_BYTES,
        description="The most memory for the records of these config changes. The oldest changes give way.",
    )


class TelemetrySettings(Settings):
    """`service::telemetry`: what the service says of itself."""

    unsupported: ClassVar[Mapping[str, str]] = {
        "resource": "use the receiver's resource key, or OTEL_RESOURCE_ATTRIBUTES, for the records' resource",
    }
    implied: ClassVar[Mapping[str, tuple[object, ...]]] = {"resource": ({},)}

    logs: LogsSettings = Field(default_factory=LogsSettings, description="The service's own log, on standard error.")
    metrics: MetricsSettings = Field(
        default_factory=MetricsSettings, description="Who reads the service's own metrics."
    )
    traces: TracesSettings = Field(
        default_factory=TracesSettings, description="Where spans of webhooks and deliveries are sent."
    )
    journal: JournalSettings = Field(
        default_factory=JournalSettings,
        description="What happened last, in memory: `statsig-otel top` and the live page show it.",
    )
