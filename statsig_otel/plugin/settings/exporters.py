"""Which types of exporters there are: those that are built in, and those that entry points of distributions add.

Only what a configuration names is imported. What can't be used breaks no configuration that does not name it.
"""

import importlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from inspect import iscoroutinefunction
from typing import Any, Final

from pydantic import BaseModel, model_validator

from statsig_otel.config.errors import ConfigError, Problem, SettingError
from statsig_otel.config.grammar import TYPE
from statsig_otel.config.model import Opaque, Settings
from statsig_otel.exporters.exporter import Exporter
from statsig_otel.exporters.exporter_type import ExporterType
from statsig_otel.plugin.settings.delivery import ConfiguredExporter

_METHODS: Final = ("start", "send", "shutdown")


def fault_of(exporter: object) -> str | None:
    """What keeps an object from being an exporter, as the end of a sentence that begins with its type."""
    for name in _METHODS:
        method = getattr(exporter, name, None)
        if not callable(method):
            return f"has no {name}()"
        if iscoroutinefunction(method):
            return f"has an async {name}(), and it is called in a thread"
    return None


_logger: Final = logging.getLogger(__name__)

GROUP: Final = "statsig_otel.exporters"
"""The group of the entry points."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of exporter that can be used.

    Attributes:
        settings: The model of its settings.
        create: Makes one of its id and its checked settings. Loads the libraries that it needs, and opens nothing.
        origin: The distribution that it is from, for people; empty for what is built in.
    """

    settings: type[Settings]
    create: Callable[[str, Any], Exporter]
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why a type of exporter can't be used.

    Attributes:
        reason: What is wrong.
        hint: What to do about it.
    """

    reason: str
    hint: str


@dataclass(frozen=True, slots=True)
class Installed:
    """An exporter type that a distribution adds.

    Attributes:
        name: The type.
        distribution: The distribution's name and version.
        value: What the entry point refers to, `module:attribute`.
    """

    name: str
    distribution: str
    value: str

    @property
    def module(self) -> str:
        """The module that is imported for it."""
        return self.value.partition(":")[0].strip()


class ExporterTypes(Mapping[str, type[Settings]]):
    """The models of all types of exporters, as the table that `config` checks a file with; safe in any thread.

    A type that can't be used has a model that refuses whatever is written, with the reason.

    Args:
        built_in: Those that are built in. Nothing that is installed takes their place.
        aliases: Older names of theirs.
    """

    def __init__(self, built_in: Mapping[str, Kind], aliases: Mapping[str, str]) -> None:
        self._built_in = built_in
        self._aliases = aliases
        self._lock = threading.RLock()  # over all below
        self._installed: tuple[Installed, ...] | None = None
        self._loaded: dict[tuple[str, str], Kind | Unusable] = {}  # by name and value
        self._said: set[Installed] = set()

    def __getitem__(self, type_: str) -> type[Settings]:
        kind = self.kind(type_)
        return _refusing(kind) if isinstance(kind, Unusable) else kind.settings

    def __iter__(self) -> Iterator[str]:
        names = (one.name for one in self.installed() if TYPE.fullmatch(one.name) and one.name not in self._aliases)
        return iter(dict.fromkeys([*self._built_in, *names]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, type_: object) -> bool:
        """Imports nothing."""
        return type_ in list(iter(self))

    def refresh(self) -> None:
        """Look anew at what is installed, once it is asked for. What was imported stays as it is until a restart."""
        with self._lock:
            self._installed = None
            self._loaded = {key: kind for key, kind in self._loaded.items() if isinstance(kind, Kind)}
            importlib.invalidate_caches()

    def installed(self) -> tuple[Installed, ...]:
        """All that distributions add, also what can't be used. Imports nothing."""
        with self._lock:
            if self._installed is None:
                self._installed = tuple(sorted(map(_installed, entry_points(group=GROUP)), key=_order))
            return self._installed

    def fault(self, one: Installed) -> Unusable | None:
        """What keeps a type that a distribution adds from being used. Imports it, where nothing else is wrong."""
        if one.name in self._built_in or one.name in self._aliases:
            reason = f"{one.distribution} adds an exporter type {one.name}, which is built in: the built-in one is used"
            return Unusable(reason, "give the entry point another name")
        if not TYPE.fullmatch(one.name):
            reason = f"{one.distribution} adds {one.name!r}, which is not a type: letters, digits and _, first a letter"
            return Unusable(reason, "give the entry point another name")
        kind = self.kind(one.name)
        return kind if isinstance(kind, Unusable) else None

    def kind(self, type_: str) -> Kind | Unusable:
        """A type by its name, imported where it has to be.

        Raises:
            KeyError: There is none.
        """
        with self._lock:
            rivals = [one for one in self.installed() if one.name == type_]
            if type_ in self._built_in:
                self._say_unused(rivals)
                return self._built_in[type_]
            if type_ in self._aliases or not rivals or not TYPE.fullmatch(type_):
                raise KeyError(type_)
            if len(rivals) > 1:
                names = " and ".join(one.distribution for one in rivals)
                return Unusable(f"{names} both add an exporter type {type_}", "uninstall one of them")
            key = rivals[0].name, rivals[0].value
            if key not in self._loaded:
                self._loaded[key] = _load(rivals[0])
            return self._loaded[key]

    def create(self, id_: str, settings: Settings) -> Exporter:
        """Make an exporter; nothing is opened.

        Raises:
            ConfigError: The distribution that it is from can't make one of these settings.
            KeyError: There is no such type.
        """
        type_ = id_.partition("/")[0]
        kind = self.kind(self._aliases.get(type_, type_))
        if isinstance(kind, Unusable):
            raise ConfigError([Problem(("exporters", id_), kind.reason, kind.hint)])
        if not kind.origin:
            return kind.create(id_, settings)
        try:
            exporter = kind.create(id_, settings)
        except Exception as error:
            _logger.debug("%s: %s could not make it", id_, kind.origin, exc_info=True)
            said = str(error) if isinstance(error, ValueError) else _said(error)
            reason = _without(_secrets(settings), f"{kind.origin} can't make an exporter of this: {_one_line(said)}")
            raise ConfigError([Problem(("exporters", id_), reason)]) from None
        fault = fault_of(exporter)
        if fault is not None:
            reason = f"{kind.origin} made a {type(exporter).__name__} instead of an exporter: it {fault}"
            raise ConfigError([Problem(("exporters", id_), reason)])
        return exporter

    def _say_unused(self, rivals: Sequence[Installed]) -> None:
        for one in rivals:
            if one not in self._said:
                self._said.add(one)
                message = "%s adds an exporter type %s, which is built in: the built-in one is used"
                _logger.warning(message, one.distribution, one.name)


def _installed(point: EntryPoint) -> Installed:
    distribution = f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"
    return Installed(point.name, distribution, point.value)


def _order(one: Installed) -> tuple[str, str, str]:
    return one.name, one.distribution, one.value


def _load(one: Installed) -> Kind | Unusable:
    """Import a type and look whether it is what it has to be."""
    mend = f"mend, upgrade or uninstall {one.distribution}"
    where = f"the entry point {one.name} of {one.distribution}"
    try:
        found = EntryPoint(one.name, one.value, GROUP).load()
    except (Exception, SystemExit) as error:
        _logger.debug("%s can't be imported", where, exc_info=True)
        hint = f'try python -c "import {one.module}"; {mend}'
        return Unusable(f"{where} can't be imported: {_said(error)}", hint)
    fault = _fault(found)
    if fault is not None:
        return Unusable(f"{where} can't be used: {fault}", mend)
    return Kind(found.settings, found.create, one.distribution)


def _fault(found: object) -> str | None:
    """What is wrong with what an entry point refers to."""
    if not isinstance(found, ExporterType):
        return f"it is of the type {type(found).__name__}, and has to be a statsig_otel.exporters.ExporterType"
    settings: object = found.settings
    if not (isinstance(settings, type) and issubclass(settings, Settings)):
        return "its settings are not a subclass of statsig_otel.config.Settings"
    create: object = found.create
    if not callable(create):
        return "its create can't be called"
    taken = [key for key in settings.model_fields if key in ConfiguredExporter.shared_keys()]
    if taken:
        return f"its settings have a key {taken[0]}, which every exporter has by itself"
    timeout = settings.model_fields.get("timeout")
    if timeout is not None and timeout.annotation not in (int, float):
        return "its settings have a key timeout that is not a statsig_otel.config.Duration"
    return None


def _said(error: BaseException) -> str:
    return _one_line(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _refusing(why: Unusable) -> type[Settings]:
    """A model for which nothing that is written is right."""

    class Refusing(Settings):
        @model_validator(mode="before")
        @classmethod
        def _refuse(cls, values: object) -> object:  # noqa: ARG003 - pydantic's signature
            raise SettingError(why.reason, why.hint)

    return Refusing


def _secrets(value: object) -> Iterator[str]:
    """The secrets in settings."""
    if isinstance(value, Opaque):
        yield value.reveal()
    elif isinstance(value, BaseModel):
        for _, item in value:
            yield from _secrets(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _secrets(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _secrets(item)


def _without(secrets: Iterator[str], text: str) -> str:
    for secret in secrets:
        if secret:
            text = text.replace(secret, repr(Opaque(secret)))
    return text
