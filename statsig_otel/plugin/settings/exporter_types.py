"""The types of exporters: those that are built in, and those that entry points of distributions add.

Only what a configuration names is imported. What can't be used breaks no configuration that does not name it.
"""

import importlib
import logging
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from pydantic import BaseModel, model_validator

from statsig_otel._arguments import why_not_callable
from statsig_otel.config.errors import ConfigError, Fault, Problem, SettingError
from statsig_otel.config.grammar import TYPE
from statsig_otel.config.model import Settings
from statsig_otel.config.opaque import Opaque
from statsig_otel.config.values import without_these
from statsig_otel.exporters.exporter import Exporter
from statsig_otel.exporters.exporter_type import ExporterType
from statsig_otel.plugin.settings.exporters import ConfiguredExporter

_METHODS: Final = {"start": "", "send": "payload, count, timeout", "shutdown": ""}
"""The methods of an exporter, and the arguments that each is called with, by position."""


def why_not_exporter(exporter: object) -> str | None:
    """Why an object is not an exporter, as the end of a sentence that begins with its type."""
    return next(
        filter(None, (why_not_callable(exporter, name, parameters) for name, parameters in _METHODS.items())), None
    )


_logger: Final = logging.getLogger(__name__)

_UNUSED: Final = "%s adds an exporter type %s, which is built in: the built-in one is used"

GROUP: Final = "statsig_otel.exporters"
"""The group of the entry points."""


@dataclass(frozen=True, slots=True, order=True)
class InstalledType:
    """An exporter type that a distribution adds.

    Attributes:
        name: The type.
        distribution: The distribution's name and version.
        value: What the entry point refers to, `module:attribute`.
    """

    name: str
    distribution: str
    value: str


class ExporterTypes(Mapping[str, type[Settings]]):
    """The types of exporters by name; as a mapping, their settings models, by which `config` checks a file.

    A type that can't be used has a model that refuses whatever is written, with the reason. Nothing that is installed
    takes the place of a built-in type or of its older names (`aliases`). Safe in any thread.
    """

    def __init__(self, built_in: Mapping[str, ExporterType[Any]], aliases: Mapping[str, str]) -> None:
        self._built_in = built_in
        self._aliases = aliases
        self._lock = threading.RLock()  # over all below
        self._installed: tuple[InstalledType, ...] | None = None
        self._loaded: dict[InstalledType, ExporterType[Any] | Fault] = {}
        self._warned_of: set[InstalledType] = set()

    def __getitem__(self, type_: str) -> type[Settings]:
        found = self.find(type_)
        return _refusing(found) if isinstance(found, Fault) else found.settings

    def __iter__(self) -> Iterator[str]:
        names = (one.name for one in self.installed() if TYPE.fullmatch(one.name) and one.name not in self._aliases)
        return iter(dict.fromkeys([*self._built_in, *names]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, type_: object) -> bool:
        """Whether there is such a type. Imports nothing."""
        return type_ in list(iter(self))

    def refresh(self) -> None:
        """Find out again what is installed, when it is next needed. What was imported stays until a restart."""
        with self._lock:
            self._installed = None
            self._loaded = {one: found for one, found in self._loaded.items() if isinstance(found, ExporterType)}
            importlib.invalidate_caches()

    def installed(self) -> tuple[InstalledType, ...]:
        """Everything that distributions add, usable or not. Imports nothing."""
        with self._lock:
            if self._installed is None:
                self._installed = tuple(sorted(map(_installed, entry_points(group=GROUP))))
            return self._installed

    def fault(self, one: InstalledType) -> Fault | None:
        """Why a type that a distribution adds can't be used. Imports it if nothing else is wrong."""
        rename = "give the entry point another name"
        if one.name in self._built_in or one.name in self._aliases:
            return Fault(_UNUSED % (one.distribution, one.name), rename)
        if not TYPE.fullmatch(one.name):
            what = f"{one.distribution} adds {one.name!r}, which is not a type: letters, digits and _, first a letter"
            return Fault(what, rename)
        found = self.find(one.name)
        return found if isinstance(found, Fault) else None

    def find(self, type_: str) -> ExporterType[Any] | Fault:
        """A type by its name, imported if needed.

        Raises:
            KeyError: There is none.
        """
        with self._lock:
            candidates = [one for one in self.installed() if one.name == type_]
            if type_ in self._built_in:
                self._say_unused(candidates)
                return self._built_in[type_]
            if type_ in self._aliases or not candidates or not TYPE.fullmatch(type_):
                raise KeyError(type_)
            if len(candidates) > 1:
                names = " and ".join(one.distribution for one in candidates)
                return Fault(f"{names} both add an exporter type {type_}", "uninstall one of them")
            if candidates[0] not in self._loaded:
                self._loaded[candidates[0]] = _load(candidates[0])
            return self._loaded[candidates[0]]

    def create(self, id_: str, settings: Settings) -> Exporter:
        """Create an exporter; nothing is opened.

        Raises:
            ConfigError: The distribution that adds its type can't create an exporter from these settings.
            KeyError: There is no such type.
        """
        type_ = id_.partition("/")[0]
        type_ = self._aliases.get(type_, type_)
        found = self.find(type_)
        if isinstance(found, Fault):
            raise ConfigError([Problem(("exporters", id_), *found)])
        if type_ in self._built_in:
            return found.create(id_, settings)
        origin = next(one.distribution for one in self.installed() if one.name == type_)
        try:
            exporter = found.create(id_, settings)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - somebody else's code
            trace = without_these(secrets_in(settings), traceback.format_exc())
            _logger.debug("%s: %s could not create it\n%s", id_, origin, trace)
            said = " ".join(str(error).split()) if isinstance(error, ValueError) else _described(error)
            message = without_these(secrets_in(settings), f"{origin} can't create an exporter from this: {said}")
            raise ConfigError([Problem(("exporters", id_), message)]) from None
        if why := why_not_exporter(exporter):
            message = f"{origin} made a {type(exporter).__name__} instead of an exporter: it {why}"
            raise ConfigError([Problem(("exporters", id_), message)])
        return exporter

    def _say_unused(self, candidates: Sequence[InstalledType]) -> None:
        for one in candidates:
            if one not in self._warned_of:
                self._warned_of.add(one)
                _logger.warning(_UNUSED, one.distribution, one.name)


def _installed(point: EntryPoint) -> InstalledType:
    distribution = f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"
    return InstalledType(point.name, distribution, point.value)


def _load(one: InstalledType) -> ExporterType[Any] | Fault:
    """Import a type and check whether it is what it has to be."""
    mend = f"fix, upgrade or uninstall {one.distribution}"
    where = f"the entry point {one.name} of {one.distribution}"
    try:
        found = EntryPoint(one.name, one.value, GROUP).load()
    except (Exception, SystemExit) as error:
        _logger.debug("%s can't be imported", where, exc_info=True)
        hint = f'try python -c "import {one.value.partition(":")[0].strip()}"; {mend}'
        return Fault(f"{where} can't be imported: {_described(error)}", hint)
    why = _why_not_type(found)
    return Fault(f"{where} can't be used: {why}", mend) if why else found


def _why_not_type(found: object) -> str | None:
    """Why the object that an entry point refers to can't be used as an exporter type."""
    if not isinstance(found, ExporterType):
        return f"it is of the type {type(found).__name__}, and has to be a statsig_otel.exporters.ExporterType"
    settings = found.settings
    taken = [key for key in settings.model_fields if key in ConfiguredExporter.shared_keys()]
    if taken:
        return f"its settings have a key {taken[0]}, which every exporter already has"
    timeout = settings.model_fields.get("timeout")
    if timeout is not None and timeout.annotation not in (int, float):
        return "its settings have a key timeout that is not a statsig_otel.config.Duration"
    return None


def _described(error: BaseException) -> str:
    """The error's type and message on one line."""
    return " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split())


def _refusing(fault: Fault) -> type[Settings]:
    """A model that refuses every value, for a type that can't be used."""

    class Refusing(Settings):
        @model_validator(mode="before")
        @classmethod
        def _refuse(cls, values: object) -> object:  # noqa: ARG003 - pydantic's signature
            raise SettingError(*fault)

    return Refusing


def secrets_in(value: object) -> Iterator[str]:
    """The secrets in settings."""
    if isinstance(value, Opaque):
        yield value.reveal()
    elif isinstance(value, BaseModel):
        for _, item in value:
            yield from secrets_in(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from secrets_in(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from secrets_in(item)
