"""Makes a configuration from code instead of files, with the same components, checks and messages."""

import re
import threading
from collections import ChainMap
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any, Final, NamedTuple, TypeAlias, TypeGuard, cast

from statsig_otel._times import SEND_TIMEOUT
from statsig_otel.config.configuration import Configuration, Pipeline
from statsig_otel.config.document import NOWHERE, Document
from statsig_otel.config.errors import ConfigError, Problem, render
from statsig_otel.config.grammar import examine
from statsig_otel.config.model import Settings, resolved
from statsig_otel.config.opaque import Opaque, reveal
from statsig_otel.config.validation import in_code, validate
from statsig_otel.exporters.exporter import Exporter
from statsig_otel.exporters.hosts import MAX_PORT
from statsig_otel.plugin.record.serializer import AttributeValue
from statsig_otel.plugin.service.endpoints import SERVER_KEYS
from statsig_otel.plugin.settings.catalog import COMPONENTS
from statsig_otel.plugin.settings.exporter_types import why_not_exporter
from statsig_otel.plugin.settings.exporters import (
    ConfiguredExporter,
    ExporterObject,
    RetryOnFailureSettings,
    SendingQueueSettings,
)
from statsig_otel.plugin.settings.reading import queued_exporters
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings
from statsig_otel.plugin.settings.resource import (
    UNRESOLVED,
    misshapen_variables,
    references_in_variables,
    resource_from_environment,
)
from statsig_otel.plugin.webhook.signature import Verifier

_STORAGE: Final = "file_storage"
_PIPELINES: Final = ("service", "pipelines")
_PIPELINES_HINT: Final = (
    'give {"logs": {"receivers": [...], "exporters": [...]}}, or None: then all receivers feed all exporters'
)
_COLLECTOR: Final = COMPONENTS.unsupported["exporters"][""]
_OWN: Final = "give an object that has start, send and shutdown as an exporter of your own"
# RFC 3986: a scheme, a host, a port, and a path of unreserved characters, sub-delims, ":", "@" and "%".
_URL: Final = re.compile(
    r"(?i:https?)://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?(?:/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?"
)


@dataclass(frozen=True, slots=True)
class Destination:
    """An exporter of a service, and how it is fed.

    Args:
        exporter: The settings of an exporter, or an exporter of your own.
        sending_queue: The queue before it; on disk by default. With `enabled=False` the webhook waits for the exporter.
        retry_on_failure: The waits after a temporary failure; by default nothing is ever given up. This and
            `sending_queue` may be mappings as in a file, with units.
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
"""Receivers by id: their settings, or a mapping as in a file."""

Exporters: TypeAlias = Mapping[str, Destination | Settings | Exporter | Mapping[str, object]]
"""Exporters by id: settings or an exporter, with a `Destination` around it or not; or a mapping as in a file."""

Pipelines: TypeAlias = Mapping[str, Pipeline | Mapping[str, object]]
"""Pipelines by id, or mappings as in a file."""


class Built(NamedTuple):
    """What the arguments of `Service` say: its configuration, and its queue's directory and resource."""

    configuration: Configuration
    directory: FilePath
    resource: Mapping[str, AttributeValue]


def build_configuration(
    *,
    receivers: Receivers,
    exporters: Exporters,
    pipelines: Pipelines | None,
    resource: Mapping[str, AttributeValue] | None,
    directory: FilePath | str | None,
    min_free_bytes: int,
    environ: Mapping[str, str],
    listen: bool,
) -> Built:
    """Make a configuration of the arguments of `Service`, and check it like a file.

    Raises:
        ConfigError: All problems, each with its `::` path.
    """
    mappings = {"receivers": receivers, "exporters": exporters, "pipelines": pipelines, "resource": resource}
    misshapen = list(_misshapen(mappings))
    if misshapen:
        raise ConfigError(misshapen)
    found_references = list(references_in_variables(environ))
    receivers = resolved(receivers, ("receivers",), found_references)
    exporters = {name: _resolved_destination(name, one, found_references) for name, one in exporters.items()}
    resource = resolved(resource or {}, ("resource",), found_references)
    directory = resolved(directory, ("directory",), found_references)
    problems = [*_resource_problems(resource), *([] if listen else keys_of_servers(receivers))]
    every: Pipelines = {"logs": Pipeline(tuple(receivers), tuple(exporters))}
    values: dict[str, object] = {
        "receivers": dict(receivers),
        "exporters": dict(_as_in_a_file(exporters, problems)),
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
    configuration, found = examine(Document(values, places={}), replace(COMPONENTS, exporters=_models(exporters)))
    wrong = {problem.path[:2] for problem in problems if problem.path[0] == "exporters"}
    told = {problem.path[:end] for problem in found_references for end in range(3, len(problem.path) + 1)}
    problems += found_references
    if pipelines is None:  # what is wrong with all receivers and exporters is said of these
        found = [problem for problem in found if problem.path[:2] != _PIPELINES]
    problems += [as_argument(one) for one in found if one.path[:2] not in wrong and one.path not in told]
    queued = queued_exporters(configuration)
    if queued and not directory:
        message = f"is required: what waits for {', '.join(queued)} is kept there"
        hint = 'name one that no other service uses, or use Destination(..., sending_queue={"enabled": False})'
        problems.append(Problem(("directory",), message, hint))
    if problems:
        raise ConfigError(problems)
    return Built(configuration, FilePath(directory or ""), {**resource_from_environment(environ), **resource})


def _resolved_destination(name: str, given: Any, problems: list[Problem]) -> Destination:
    """The exporter with this id, how it is fed, and the strings that both consist of after their references."""
    one = _destination(given)
    path = ("exporters", name)
    return Destination(
        one.exporter if _is_object(one.exporter) else resolved(one.exporter, path, problems),
        resolved(one.sending_queue, (*path, "sending_queue"), problems),
        resolved(one.retry_on_failure, (*path, "retry_on_failure"), problems),
        one.timeout,
    )


def check_arguments(
    *locations: object, environ: object, listen: object, wait_for_directory: object, url: object
) -> None:
    """Check the arguments of a service that no configuration contains.

    Raises:
        ConfigError: All problems.
    """
    problems: list[Problem] = []
    for index, location in enumerate(locations):
        if not isinstance(location, str | FilePath):
            problems.append(Problem(("locations", index), "must be a path or a string", "give each file by itself"))
    problems += misshapen_variables(environ)
    for argument, value in {"listen": listen, "wait_for_directory": wait_for_directory}.items():
        if not isinstance(value, bool):
            problems.append(Problem((argument,), "must be True or False"))
    problems += _url_problems(url)
    if problems:
        raise ConfigError(problems)


def _url_problems(url: object) -> Iterator[Problem]:
    """What is wrong with a URL that paths are added to. An empty one is right."""
    match = _URL.fullmatch(url) if isinstance(url, str) else None
    if isinstance(url, str) and "${" in url:
        yield Problem(("url",), UNRESOLVED, "give the value itself")
    elif url != "" and (match is None or int(match["port"] or 1) not in range(1, MAX_PORT + 1)):
        hint = "write it as https://host/prefix, without a receiver's path, credentials, a query or a fragment"
        yield Problem(("url",), "must be a URL", hint)


def secrets_of(receiver: str, secrets: Sequence[str | Opaque]) -> list[Opaque]:
    """The signing secrets that a receiver is given while it runs, checked as those of its settings are.

    Raises:
        ConfigError: One of them can't be a secret.
        TypeError: They are not a list of strings or `Opaque`s.
    """
    with suppress(ValueError):  # which the settings say with its place
        Verifier(secrets)
    try:
        return [Opaque(reveal(one)) for one in StatsigReceiverSettings(signing_secrets=secrets).signing_secrets]
    except ConfigError as error:
        wrong = [replace(problem, path=("receivers", receiver, *problem.path)) for problem in error.problems]
        raise ConfigError(wrong) from None


def as_argument(problem: Problem) -> Problem:
    """A problem in the words of code: the keys of a file's storage extension, and `pipelines`, are arguments."""
    path, hint = problem.path, problem.hint
    if path[:2] == ("extensions", _STORAGE):
        path = path[2:]
    elif path[:2] == _PIPELINES:
        path = path[1:]
        is_misshapen = problem.message == ("is empty" if len(path) == 1 else "must be a mapping")
        hint = _PIPELINES_HINT if is_misshapen else hint
    hint = hint and hint.replace(render(_PIPELINES), "pipelines").replace(_COLLECTOR, f"{_OWN}, or {_COLLECTOR}")
    return in_code(replace(problem, path=path, hint=hint))


def _models(exporters: Exporters) -> Mapping[str, type[Settings]]:
    """The models of all types of exporters, and of the types that are exporters made in code."""
    types = {name.partition("/")[0] for name, one in exporters.items() if _is_object(_destination(one).exporter)}
    known = cast("MutableMapping[str, type[Settings]]", COMPONENTS.exporters)  # it is only read
    return ChainMap(dict.fromkeys(types - {*known, *COMPONENTS.aliases}, ExporterObject), known)


def _destination(given: Any) -> Destination:
    return given if isinstance(given, Destination) else Destination(given)


def _is_object(exporter: object) -> bool:
    """Whether it is an exporter, and not the settings of one."""
    return not isinstance(exporter, Settings | Mapping | None)


def _as_in_a_file(exporters: Exporters, problems: list[Problem]) -> Iterator[tuple[str, object]]:
    """The exporters as a file has them: settings and how they are fed, or a mapping. Adds to `problems`."""
    owners: dict[int, str] = {}  # the first id of each object
    for name, given in exporters.items():
        destination, path = _destination(given), ("exporters", name)
        settings: object = destination.exporter
        if _is_object(settings):
            problems += _object_problems(name, destination, owners.setdefault(id(settings), name))
            timeout = destination.timeout if _is_timeout(destination.timeout) else SEND_TIMEOUT
            settings = ExporterObject(exporter=settings, timeout=timeout)
        elif settings is None and COMPONENTS.type_of(name) not in COMPONENTS.exporters:
            problems.append(Problem(path, "is None instead of an exporter", f"{_OWN}, or the settings of one"))
        elif destination.timeout is not None:
            problems.append(Problem((*path, "timeout"), "is a key of the exporter's own settings", "set it there"))
        feeding = {"sending_queue": destination.sending_queue, "retry_on_failure": destination.retry_on_failure}
        keys = {key: value for key, value in feeding.items() if value is not None}
        if isinstance(settings, Settings) and keys:
            configured, found = validate(ConfiguredExporter, {"settings": settings, **keys}, path, NOWHERE)
            problems += found
            yield name, configured
        else:
            yield name, {**settings, **keys} if isinstance(settings, Mapping) else settings


def _is_timeout(seconds: object) -> TypeGuard[float]:
    return isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 < seconds <= threading.TIMEOUT_MAX


def _object_problems(name: str, destination: Destination, owner: str) -> Iterator[Problem]:
    """The fault of an exporter that is an object; `owner` is the first id that has the same object."""
    path, exporter, type_ = ("exporters", name), destination.exporter, COMPONENTS.type_of(name)
    if type_ in COMPONENTS.exporters:
        message = f"is an id of the type {type_}, which is made of settings"
        yield Problem(path, message, "give an exporter of your own an id of its own")
    if destination.timeout is not None and not _is_timeout(destination.timeout):
        yield Problem((*path, "timeout"), "must be seconds, more than 0, and at most 292 years")
    why = why_not_exporter(exporter)
    if isinstance(exporter, type):
        yield Problem(path, "is a class", "give an object of it")
    elif why is not None:
        message = f"is not an exporter: {type(exporter).__name__} {why}"
        yield Problem(path, message, "give settings, or an object that has start, send and shutdown")
    elif owner != name:
        message = f"is the same object as exporters::{owner}"
        yield Problem(path, message, "make one for each id: each has a thread of its own")


def _misshapen(arguments: Mapping[str, object]) -> Iterator[Problem]:
    """Arguments that are not mappings with strings as their keys, and so can't be checked any further."""
    for name, given in arguments.items():
        optional = name in ("pipelines", "resource")
        if not isinstance(given, Mapping) and not (optional and given is None):
            yield Problem((name,), "must be a mapping", _PIPELINES_HINT if name == "pipelines" else None)
        for key, value in given.items() if isinstance(given, Mapping) else ():
            if not isinstance(key, str):
                yield Problem((name, str(key)), "must have a string as its key")
            if name == "receivers" and not isinstance(value, Settings | Mapping):
                yield Problem((name, str(key)), "must be a mapping", "give StatsigReceiverSettings, or a mapping")


def _resource_problems(resource: Mapping[str, object]) -> list[Problem]:
    """The problems of the resource, by the rules for a receiver's resource."""
    return validate(StatsigReceiverSettings, {"signing_secrets": [], "resource": dict(resource)}, (), NOWHERE)[1]


def keys_of_servers(receivers: Receivers) -> Iterator[Problem]:
    """The keys of receivers that have no effect without a server."""
    for name, given in receivers.items():
        written = given.model_fields_set if isinstance(given, Settings) else given
        for key in ("endpoint", *SERVER_KEYS):
            if key in written:
                yield Problem(("receivers", name, key), "is not used: the service does not listen", "leave it out")
