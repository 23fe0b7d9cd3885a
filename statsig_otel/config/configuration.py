"""The parts of a checked configuration, and the table of the components that it may name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from statsig_otel.config.model import Composed, Settings

_S = TypeVar("_S", bound=Settings)


@dataclass(frozen=True, slots=True)
class Components:
    """The models of all components, by type.

    Attributes:
        aliases: Older names of types, and the names that they have now.
        telemetry: `service::telemetry`; a model that needs no key.
        unsupported: The Collector's types that do not exist here, by section, each with what to do instead; "" stands
            for all types that nobody knows.
        single: The types of extensions of which a service may have only one.
        composed: For each section whose components share keys, the model of these keys.
    """

    receivers: Mapping[str, type[Settings]]
    exporters: Mapping[str, type[Settings]]
    extensions: Mapping[str, type[Settings]] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    telemetry: type[Settings] = Settings
    single: frozenset[str] = frozenset()
    unsupported: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    composed: Mapping[str, type[Composed]] = field(default_factory=dict)

    def of(self, kind: str) -> Mapping[str, type[Settings]] | None:
        """The models of a section, such as `receivers`; None if there is no such section."""
        return {"receivers": self.receivers, "exporters": self.exporters, "extensions": self.extensions}.get(kind)

    def models(self, kind: str, type_: str) -> tuple[type[Settings], ...]:
        """The models that read the mapping of a component of a section (`kind`); none if there is no such type."""
        model = (self.of(kind) or {}).get(type_)
        if model is None:
            return ()
        return (self.composed[kind], model) if kind in self.composed else (model,)

    def type_of(self, id_: str) -> str:
        """The type of an id, `otlp_grpc` of `otlp/backup`."""
        type_ = id_.partition("/")[0]
        return self.aliases.get(type_, type_)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Which receivers feed which exporters, by their ids."""

    receivers: tuple[str, ...]
    exporters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Configuration:
    """A whole configuration, checked. The keys are the ids as written, in their order.

    Attributes:
        service_extensions: The ids of the extensions to start, in their order.
        telemetry: The service's own telemetry.
    """

    receivers: dict[str, Settings]
    exporters: dict[str, Settings]
    extensions: dict[str, Settings]
    pipelines: dict[str, Pipeline]
    service_extensions: tuple[str, ...] = ()
    telemetry: Settings = field(default_factory=Settings)

    def extension(self, model: type[_S]) -> _S | None:
        """The settings of the one extension with this model that the service names; None if it names none."""
        every = (self.extensions[name] for name in self.service_extensions)
        return next((settings for settings in every if isinstance(settings, model)), None)
