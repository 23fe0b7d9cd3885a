"""A configuration that is built in code: the same components, checks and words as a file has, without a line."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeGuard

from statsig_otel.config.configuration import Configuration, Pipeline
from statsig_otel.config.errors import ConfigError, Problem
from statsig_otel.config.grammar import examine
from statsig_otel.config.model import Settings
from statsig_otel.config.source import Document
from statsig_otel.config.validation import validate
from statsig_otel.exporters.exporter import Exporter
from statsig_otel.plugin.record.otlp import AttributeValue
from statsig_otel.plugin.service.endpoints import SERVER_KEYS
from statsig_otel.plugin.settings.catalog import COMPONENTS
from statsig_otel.plugin.settings.delivery import (
    ConfiguredExporter,
    ExporterObject,
    RetryOnFailureSettings,
    SendingQueueSettings,
)
from statsig_otel.plugin.settings.exporters import fault_of
from statsig_otel.plugin.settings.reading import queued_exporters
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings

_STORAGE: Final = "file_storage"


@dataclass(frozen=True, slots=True)
class Destination:
    """An exporter of a service, with how it is fed. Without one all defaults apply.

    Args:
        exporter: The settings of an exporter, or an exporter of your own.
        sending_queue: The queue before it; on disk by default. With `enabled=False` the webhook waits for the exporter.
        retry_on_failure: The waits after a passing fault; by default nothing is ever given up. Either may be a mapping
            as a file has it, with its units.
        timeout: Seconds for one `send` of an exporter of your own, 30 by default. Settings have their own key for it.

    Example:
        >>> from statsig_otel.exporters import OtlpGrpcSettings
        >>> from statsig_otel.plugin import Destination, SendingQueueSettings
        >>> bounded = Destination(
        ...     OtlpGrpcSettings(endpoint="collector:4317"), sending_queue=SendingQueueSettings(queue_size=10_000)
        ... )
    """

    exporter: Settings | Exporter
    sending_queue: SendingQueueSettings | Mapping[str, object] | None = None
    retry_on_failure: RetryOnFailureSettings | Mapping[str, object] | None = None
    timeout: float | None = None


Receivers: TypeAlias = Mapping[str, StatsigReceiverSettings | Mapping[str, object]]
"""Receivers by id: their settings, or what a file would say of them."""

Exporters: TypeAlias = Mapping[str, Destination | Settings | Exporter | Mapping[str, object]]
"""Exporters by id: settings, with a `Destination` around them or not; an exporter; or what a file would say of one."""

Pipelines: TypeAlias = Mapping[str, Pipeline | Mapping[str, object]]
"""Pipelines by id, or what a file would say of them."""

_NOWHERE: Final = Document({}, places={})


def build_configuration(
    *,
    receivers: Receivers,
    exporters: Exporters,
    pipelines: Pipelines | None,
    resource: Mapping[str, AttributeValue] | None,
    directory: Path | str | None,
    min_free_bytes: int,
    listen: bool,
) -> Configuration:
    """Make a configuration, and check it as a file's is. The arguments are those of `Service`.

    Raises:
        ConfigError: All that is wrong, each with its `::` path.
    """
    arguments = {"receivers": receivers, "exporters": exporters, "pipelines": pipelines, "resource": resource}
    misshapen = list(_misshapen(arguments))
    if misshapen:
        raise ConfigError(misshapen)
    problems = [*_unfit(exporters), *_unfit_resource(resource or {}), *([] if listen else _unused_keys(receivers))]
    every: Pipelines = {"logs": Pipeline(tuple(receivers), tuple(exporters))}
    values: dict[str, object] = {
        "receivers": dict(receivers),
        "exporters": {name: _settings(name, one, problems) for name, one in exporters.items()},
        "extensions": {_STORAGE: {"directory": directory, "min_free_bytes": min_free_bytes}} if directory else {},
        "service": {
            "extensions": [_STORAGE] if directory else [],
            "pipelines": {
                name: {"receivers": list(one.receivers), "exporters": list(one.exporters)}
                if isinstance(one, Pipeline)
                else one
                for name, one in (every if pipelines is None else pipelines).items()
            },
        },
    }
    components = replace(COMPONENTS, exporters=_Models(exporters))
    configuration, found = examine(Document(values, places={}), components)
    unfit = {problem.path[:2] for problem in problems if problem.path[0] == "exporters"}
    problems += [_as_argument(problem) for problem in found if problem.path[:2] not in unfit]
    waiting = queued_exporters(configuration)
    if waiting and not directory:
        message = f"is required: what waits for {', '.join(waiting)} is kept there"
        hint = "name one that this service has for itself; or set sending_queue: {enabled: false} for each exporter"
        problems.append(Problem(("directory",), message, hint))
    if problems:
        raise ConfigError(problems)
    return configuration


def _as_argument(problem: Problem) -> Problem:
    """What a file has in an extension is an argument here."""
    return replace(problem, path=problem.path[2:]) if problem.path[:2] == ("extensions", _STORAGE) else problem


class _Models(Mapping[str, type[Settings]]):
    """The models of all types of exporters, and of those that are objects."""

    def __init__(self, exporters: Exporters) -> None:
        known = COMPONENTS.exporters
        types = {name.partition("/")[0] for name, one in exporters.items() if _exporter_of(one) is not None}
        self._own = {type_ for type_ in types if type_ not in known and type_ not in COMPONENTS.aliases}

    def __getitem__(self, type_: str) -> type[Settings]:
        return ExporterObject if type_ in self._own else COMPONENTS.exporters[type_]

    def __iter__(self) -> Iterator[str]:
        yield from COMPONENTS.exporters
        yield from self._own

    def __len__(self) -> int:
        return len(COMPONENTS.exporters) + len(self._own)


def _exporter_of(given: object) -> Any | None:
    """The exporter where an object is given; None for settings, and for what a file would say."""
    exporter = given.exporter if isinstance(given, Destination) else given
    return None if exporter is None or isinstance(exporter, Settings | Mapping) else exporter


def _settings(name: str, given: object, problems: list[Problem]) -> object:
    """What a file has in its place: settings, with how they are fed; all else as it is, for the check.

    Args:
        name: The exporter's id.
        given: What is given for it.
        problems: Where to add what is wrong with the queue's keys of a destination.
    """
    destination = given if isinstance(given, Destination) else None
    own = _exporter_of(given)
    settings: object = destination.exporter if destination else given
    if own is not None:
        timeout = destination.timeout if destination else None
        settings = ExporterObject(exporter=own, **({"timeout": timeout} if _is_timeout(timeout) else {}))
    if destination is None:
        return settings
    keys = dict(_keys(("exporters", name), destination, problems))
    if isinstance(settings, Settings):
        return ConfiguredExporter.model_validate({"settings": settings, **keys})
    return {**settings, **keys} if isinstance(settings, Mapping) else settings


def _keys(path: tuple[str, ...], destination: Destination, problems: list[Problem]) -> Iterable[tuple[str, Settings]]:
    """The queue's keys that a destination has."""
    models: dict[str, type[Settings]] = {
        "sending_queue": SendingQueueSettings, "retry_on_failure": RetryOnFailureSettings
    }  # fmt: skip
    for key, model in models.items():
        value: object = getattr(destination, key)
        if isinstance(value, model):
            yield key, value
        elif isinstance(value, Mapping):
            settings, found = validate(model, value, (*path, key), _NOWHERE)
            problems += found
            if settings is not None:
                yield key, settings
        elif value is not None:
            problems.append(Problem((*path, key), "must be a mapping", f"give {model.__name__}, or a mapping"))


def _is_timeout(seconds: float | None) -> TypeGuard[float]:
    """Whether it is what the settings allow."""
    return seconds is not None and 0 < seconds <= threading.TIMEOUT_MAX


def _misshapen(arguments: Mapping[str, object]) -> Iterable[Problem]:
    """What is no mapping with texts as its keys, and so can't be looked at any further."""
    for name, given in arguments.items():
        path = ("service", "pipelines") if name == "pipelines" else (name,)
        if given is not None and not isinstance(given, Mapping):
            yield Problem(path, "must be a mapping")
        for key in given if isinstance(given, Mapping) else ():
            if not isinstance(key, str):
                yield Problem((*path, str(key)), "must have a text as its key")
        if name == "receivers" and isinstance(given, Mapping):
            for key, value in given.items():
                if not isinstance(value, Settings | Mapping):
                    yield Problem((*path, str(key)), "must be a mapping", "give StatsigReceiverSettings, or a mapping")


def _unfit_resource(resource: Mapping[str, object]) -> Iterable[Problem]:
    """What the resource of a receiver can't have either."""
    values = {"signing_secrets": [], "resource": dict(resource)}
    _, problems = validate(StatsigReceiverSettings, values, (), _NOWHERE)
    return problems


def _unfit(exporters: Exporters) -> Iterable[Problem]:
    """What the types would have told."""
    first: dict[int, str] = {}
    for name, given in exporters.items():
        own = _exporter_of(given)
        if own is None:
            if isinstance(given, Destination) and given.timeout is not None:
                yield Problem(("exporters", name, "timeout"), "is a key of the exporter's own settings", "set it there")
            continue
        type_ = COMPONENTS.type_of(name)
        if type_ in COMPONENTS.exporters:
            message = f"is an id of the type {type_}, which is made of settings"
            yield Problem(("exporters", name), message, "give an exporter of your own an id of its own")
        timeout = given.timeout if isinstance(given, Destination) else None
        if timeout is not None and not _is_timeout(timeout):
            yield Problem(("exporters", name, "timeout"), "must be more than 0, and no more than 292 years")
        fault = fault_of(own)
        if isinstance(own, type):
            yield Problem(("exporters", name), "is a class", "give an object of it")
        elif fault is not None:
            message = f"is no exporter: {type(own).__name__} {fault}"
            yield Problem(("exporters", name), message, "give settings, or an object that has start, send and shutdown")
        elif first.setdefault(id(own), name) != name:
            message = f"is the same object as exporters::{first[id(own)]}"
            yield Problem(("exporters", name), message, "make one for each id: each has a thread of its own")


def _unused_keys(receivers: Receivers) -> Iterable[Problem]:
    for name, given in receivers.items():
        written = given.model_fields_set if isinstance(given, Settings) else set(given)
        for key in ("endpoint", *SERVER_KEYS):
            if key in written:
                yield Problem(("receivers", name, key), "is not used: the service does not listen", "leave it out")
