"""Where the durable queue is: the `file_storage` extension, or a default directory that fits the machine."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

from pydantic import Field, field_validator

from statsig_otel.config.configuration import Configuration
from statsig_otel.config.errors import ConfigError, Problem, SettingError
from statsig_otel.config.model import Settings
from statsig_otel.config.units import Duration, Size
from statsig_otel.config.values import PlainPath
from statsig_otel.exporters.queue.queue import DEFAULT_MIN_FREE
from statsig_otel.plugin.settings.exporters import ConfiguredExporter

_SYSTEM: Final = Path("/var/lib/statsig-otel")
_NAME: Final = "statsig-otel"


class FileStorageSettings(Settings):
    """The `file_storage` extension: the directory of the durable queue. One service owns it at a time."""

    unsupported: ClassVar[Mapping[str, str]] = {
        "compaction": "leave it out: the space of delivered records is used again",
        "create_directory": "leave it out: the directory is created if it is missing",
        "directory_permissions": "leave it out: the directory is created for its owner alone (0700)",
        "fsync": "leave it out: nothing is acknowledged before it is on the disk",
        "recreate": "leave it out: a corrupt file is set aside, and the service starts",
        "timeout": "leave it out: one service owns the directory, and a second one says so at once",
    }
    implied: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "compaction": (dict,),
        "create_directory": (True,),
        "directory_permissions": ("0700", "700"),
        "fsync": (True,),
        "recreate": (True,),
        "timeout": (Duration,),
    }

    needed: ClassVar[Mapping[str, str]] = {"directory": "name a directory, such as /var/lib/statsig-otel"}

    directory: PlainPath = Field(
        description="The directory; it is created if it is missing.",
        examples=["/var/lib/statsig-otel"],
        json_schema_extra={"minLength": 1},
    )

    @field_validator("directory", mode="before")
    @classmethod
    def _refuse_empty(cls, value: object) -> object:
        if value == "":
            raise SettingError("is empty", cls.needed["directory"])
        return value

    min_free_bytes: Size = Field(
        default=DEFAULT_MIN_FREE, ge=0, description="Refuse webhooks with 503 while the disk has less than this."
    )


def find_directory(configuration: Configuration | None, environ: Mapping[str, str]) -> Path:
    """The queue's directory, as an absolute path.

    The `file_storage` extension's; without one systemd's `$STATE_DIRECTORY`, else /var/lib/statsig-otel where that can
    be written, else the user's state directory (XDG Base Directory Specification).

    Raises:
        ConfigError: None of these can be used, and an exporter of the configuration has a queue.
    """
    settings = configuration.extension(FileStorageSettings) if configuration is not None else None
    if settings is not None:
        return settings.directory.absolute()
    if state := environ.get("STATE_DIRECTORY", "").partition(":")[0]:  # systemd.exec: several are joined by colons
        return Path(state).absolute()
    state_home = _state_home(environ)
    if _can_be_written(_SYSTEM) or not _has_queue(configuration):
        return _SYSTEM
    if state_home is None:
        message = f"there is no directory for the queue: {_SYSTEM} can't be written, and the user has no home directory"
        hint = "name one in extensions: {file_storage: {directory: ...}}, or in STATE_DIRECTORY"
        raise ConfigError([Problem((), message, hint)])
    return state_home.absolute() / _NAME


def _state_home(environ: Mapping[str, str]) -> Path | None:
    """The directory for the user's state; None for a user without a home, such as a container's."""
    if home := environ.get("XDG_STATE_HOME"):
        return Path(home)
    try:
        return Path(environ.get("HOME") or "~").expanduser() / ".local" / "state"
    except RuntimeError:
        return None


def _has_queue(configuration: Configuration | None) -> bool:
    return configuration is None or any(
        one.is_queued for one in configuration.exporters.values() if isinstance(one, ConfiguredExporter)
    )


def _can_be_written(directory: Path) -> bool:
    """Whether the directory is there and writable, or can be made."""
    existing = directory if directory.exists() else directory.parent
    return os.access(existing, os.W_OK | os.X_OK)
