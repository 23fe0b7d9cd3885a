"""Describes an exporter of another distribution, so that a configuration can use it by an entry point."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from statsig_otel._arguments import described, mistyped
from statsig_otel.config.model import Settings
from statsig_otel.exporters.exporter import Exporter

_S = TypeVar("_S", bound=Settings)

IN_A_DESTINATION: Final = {
    key: f"Destination(..., {key}=...) around these settings" for key in ("sending_queue", "retry_on_failure")
}
"""Keys that an exporter has only in a file, each with what to write in code: a part of `Settings.meant`."""


@dataclass(frozen=True, slots=True)
class ExporterType(Generic[_S]):
    """A type of exporter. An entry point in the group `statsig_otel.exporters` refers to it, and its name is the type.

    In a configuration the exporter has the keys of `settings`, and `sending_queue` and `retry_on_failure`, which every
    exporter has. If `settings` has a key `timeout`, a `Duration`, `send` receives its value; otherwise 30 s.

    Attributes:
        settings: The model of the exporter's own keys. Use `Opaque` for secret strings.
        create: Creates an exporter from its id, such as `chat/ops`, and its checked settings. It must not open
            anything, because `statsig-otel validate` calls it too. Imports that only this exporter needs belong here.
            An exception is reported as an error of the configuration.

    Raises:
        TypeError: `settings` is not a subclass of `Settings`, or `create` can't be called.

    Example:
        >>> from statsig_otel.config import Duration, Opaque, Settings
        >>> from statsig_otel.exporters import Delivered, ExporterType
        >>> class ChatSettings(Settings):
        ...     url: Opaque
        ...     timeout: Duration = 10.0
        >>> class ChatExporter:
        ...     def __init__(self, name: str, settings: ChatSettings) -> None:
        ...         self._settings = settings
        ...     def start(self) -> None: ...
        ...     def send(self, payload, count, timeout):
        ...         return Delivered()
        ...     def shutdown(self) -> None: ...
        >>> EXPORTER = ExporterType(ChatSettings, ChatExporter)

        And in the distribution's pyproject.toml:

            [project.entry-points."statsig_otel.exporters"]
            chat = "my_package:EXPORTER"
    """

    settings: type[_S]
    create: Callable[[str, _S], Exporter]

    def __post_init__(self) -> None:
        settings: object = self.settings
        if not (isinstance(settings, type) and issubclass(settings, Settings)):
            name = settings.__qualname__ if isinstance(settings, type) else described(settings)
            raise TypeError(f"settings must be a subclass of statsig_otel.config.Settings, not {name}")
        if not callable(self.create):
            raise TypeError(mistyped("create", self.create, "a function of an id and settings"))
        self.settings.meant = {**IN_A_DESTINATION, **self.settings.meant}
