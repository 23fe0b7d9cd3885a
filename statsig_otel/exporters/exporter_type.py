"""What an installed distribution says of an exporter, so that a configuration file can name it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from statsig_otel.config.model import Settings
from statsig_otel.exporters.exporter import Exporter

_S = TypeVar("_S", bound=Settings)


@dataclass(frozen=True, slots=True)
class ExporterType(Generic[_S]):
    """A kind of exporter. An entry point of the group `statsig_otel.exporters` names one; its own name is the type.

    The file's keys are those of `settings`, with `sending_queue` and `retry_on_failure`, which every exporter has.
    Where there is a key `timeout`, a `Duration`, it is what `send` gets; without one that is 30 s.

    Attributes:
        settings: The model of the exporter's own keys. Texts that must not be seen are `Opaque` there.
        create: Makes an exporter of an id, such as `chat/ops`, and its checked settings. It opens nothing, since
            `statsig-otel validate` makes one too, and it loads what only this exporter needs. What it raises is an
            error of the configuration.

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
