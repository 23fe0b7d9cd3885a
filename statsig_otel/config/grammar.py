"""Checks a whole configuration by the Collector's grammar: sections, ids, pipelines, and each component's settings.

The models of the components are an argument, so that this floor knows none of them.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, TypeAlias
from unicodedata import category

from statsig_otel.config.configuration import Components, Configuration, Pipeline
from statsig_otel.config.document import Document, Unknown
from statsig_otel.config.errors import (
    NOT_A_NAME,
    ConfigError,
    Path,
    Problem,
    closest,
    hint_for,
    quoted_name,
    render,
)
from statsig_otel.config.model import Composed, Settings, extensions_of
from statsig_otel.config.validation import (
    LIST_HINT,
    MAPPING_HINT,
    compose,
    is_list_of_secrets,
    is_one_secret,
    is_secret,
    may_be_secret,
    validate,
)

_KINDS: Final = {"receivers": "receiver", "exporters": "exporter", "extensions": "extension"}
"""The sections of components, and the word for one of each."""

_SIGNALS: Final = ("traces", "metrics", "profiles")
_ADVICE: Final = {
    "processors": "use the receiver's own keys, such as resource and user, or run a Collector behind this one",
    "connectors": "write several pipelines, or run a Collector behind this one",
}

# The Collector's component package, id.go: typeRegexp and nameRegexp.
TYPE: Final = re.compile(r"[a-zA-Z][0-9a-zA-Z_]{0,62}")
"""The name of a component's type."""

_LONGEST_NAME: Final = 1024
_SERVICE_HINT: Final = "write service: {pipelines: {logs: {receivers: [...], exporters: [...]}}}"
_SECTION_HINT: Final = "write a line for each, its id and a colon; lists of ids stand below service alone"
_PIPELINE_HINT: Final = "move it below service::pipelines::logs"
_KEY_OF_COMPONENT: Final = 2
_UNSET_HINT: Final = "set it where the service runs, or write ${file:PATH}, with the secret in a file"
_ID_HINT: Final = "an id is TYPE or TYPE/NAME, such as otlp_grpc/backup"


def check(document: Document, components: Components, *, may_be_stopped: bool = False) -> Configuration:
    """Check what was written.

    Args:
        document: What was written.
        components: The models of the components.
        may_be_stopped: Accept that credentials are missing which systemd makes only while the service runs. Random
            strings stand for them.

    Raises:
        ConfigError: All that is wrong, including what was wrong when single values were read.
    """
    configuration, problems = examine(document, components)
    if wrong := [problem for problem in problems if not (may_be_stopped and problem.of_running)]:
        raise ConfigError(wrong)
    return configuration


def examine(document: Document, components: Components) -> tuple[Configuration, list[Problem]]:
    """The parts of a document that are right, and all problems. `check` raises where there is a problem.

    Where there are problems, pipelines may name components that are missing.
    """
    checker = _Checker(document, components)
    configuration = checker.configuration()
    read = [_for_secret(problem, components) for problem in (*document.problems, *document.unresolved)]
    doubts = {doubt.path: doubt.message for doubt in document.doubts}
    # A value that is refused may be one that was not replaced, such as $NAME.
    checked = [replace(found, hint=found.hint or doubts.get(found.path)) for found in checker.problems]
    return configuration, [*read, *checked]


def _for_secret(problem: Problem, components: Components) -> Problem:
    """A problem of reading a value. If the value is a secret, no hint says to write a default, which all could read.

    A key that is not a name may be a secret too: of `{authorization:Bearer TOKEN}` everything is the key. So may a key
    in the place of a secret, and the path ends before it.
    """
    kind, id_, *below = problem.path if len(problem.path) > _KEY_OF_COMPONENT else ("", "", "")
    models = components.models(str(kind), components.type_of(str(id_)))
    if (kind, id_) == ("service", "telemetry"):
        models = (components.telemetry,)
    if not models:
        return problem
    for end in range(1, len(below) + 1):
        above = tuple(below[:end])
        if may_be_secret(models, above):
            path = problem.path[: _KEY_OF_COMPONENT + end - 1]
            return replace(problem, path=path, message=NOT_A_NAME.message, hint=NOT_A_NAME.hint)
        is_key_next = end < len(below) and isinstance(below[end], str)
        if is_one_secret(models, above) or (is_key_next and is_list_of_secrets(models, above)):
            problem, below = replace(problem, path=problem.path[: _KEY_OF_COMPONENT + end]), below[:end]
            break
    if problem.unset is None or not is_secret(models, tuple(below)):
        return problem
    return replace(problem, hint=_UNSET_HINT)


_Section: TypeAlias = dict[str, Settings | None]
"""Settings by id; None where they are wrong. A pipeline may still name the id."""


class _Checker:
    """Walks a document once and collects all problems.

    A value that can't be known because of an earlier mistake is None and causes no further problem.
    """

    def __init__(self, document: Document, components: Components) -> None:
        self.problems: list[Problem] = []
        self._document = document
        self._components = components
        self._meant: set[Path] = set()  # keys that are there, but misspelt
        self._used: dict[str, set[str] | None] = {kind: set() for kind in _KINDS}  # ids; None where that is unknown
        self._misspelt: dict[Path, str] = {}  # ids as written, by the ids that were meant

    def configuration(self) -> Configuration:
        values = self._document.values
        self._keys((), values, (*_KINDS, "service"), refused=tuple(_ADVICE))
        sections = {
            "receivers": self._section("receivers", self._components.receivers, required=True),
            "exporters": self._section("exporters", self._components.exporters, required=True),
            "extensions": self._section("extensions", self._components.extensions, required=False),
        }
        extensions, pipelines = self._service(sections)
        self._extensions_of_components(sections)
        for kind, section in sections.items():
            self._unused(kind, section, next(iter(pipelines), "logs"))
        settings = {
            kind: {id_: value for id_, value in (section or {}).items() if value is not None}
            for kind, section in sections.items()
        }
        return Configuration(
            **settings, pipelines=pipelines, service_extensions=extensions, telemetry=self._telemetry()
        )

    def _section(self, kind: str, models: Mapping[str, type[Settings]], *, required: bool) -> _Section | None:
        hint = f"name at least one {_KINDS[kind]}"
        values = self._mapping((kind,), self._document.values, hint, required=required)
        if values is None:
            is_absent = self._document.values.get(kind) is None and (kind,) not in self._meant
            return {} if is_absent and not required else None
        if not values and required:
            self._say((kind,), "is empty", hint)
            return None
        return {id_: self._component(kind, id_, body, models) for id_, body in values.items()}

    def _component(self, kind: str, id_: str, body: object, models: Mapping[str, type[Settings]]) -> Settings | None:
        path = (kind, id_)
        if why := _why_not_id(id_):
            self._say(path, why, _ID_HINT)
            return None
        model = models.get(self._components.type_of(id_))
        if model is None:
            type_ = id_.partition("/")[0]
            near = closest(type_, [*models, *(old for old, new in self._components.aliases.items() if new in models)])
            advice = self._components.unsupported.get(kind, {}).get(type_)
            hint = advice or hint_for(type_, models, near=near)
            if near is None and advice is None:
                hint = "; ".join(filter(None, [hint, self._components.unsupported.get(kind, {}).get("")]))
            self._say(path, f"there is no {_KINDS[kind]} of the type {quoted_name(type_)}", hint)
            if near and not advice:
                self._misspelt[kind, near + id_.removeprefix(type_)] = id_
            if (used := self._used[kind]) is not None:
                used.add(id_)  # whether it is used does not matter
            return None
        return self._settings(path, body, model, self._components.composed.get(kind))

    def _settings(
        self, path: Path, body: object, model: type[Settings], composed: type[Composed] | None = None
    ) -> Settings | None:
        if isinstance(body, Unknown):
            return None
        own = body.settings if isinstance(body, Composed) else body
        if isinstance(own, model):  # made in code, and checked then
            return own if composed is None else body if isinstance(body, composed) else composed(settings=own)
        if body is None:
            body = {}
        if isinstance(own, Settings):
            self._say(path, f"has {type(own).__name__}, which are not settings of its type")
            return None
        if not isinstance(body, Mapping):
            self._say(path, "must be a mapping", MAPPING_HINT)
            return None
        found = (
            compose(composed, model, body, path, self._document)
            if composed
            else validate(model, body, path, self._document)
        )
        self.problems += found[1]
        return found[0]

    def _service(self, sections: Mapping[str, _Section | None]) -> tuple[tuple[str, ...], dict[str, Pipeline]]:
        path: Path = ("service",)
        service = self._mapping(path, self._document.values, _SERVICE_HINT)
        if service is None:
            self._used = dict.fromkeys(_KINDS)
            return (), {}
        self._keys(path, service, ("extensions", "pipelines", "telemetry"))
        extensions: tuple[str, ...] = ()
        if service.get("extensions") is not None or (*path, "extensions") in self._meant:
            extensions = self._references((*path, "extensions"), service, "extensions", sections)
            self._single((*path, "extensions"), extensions)
        path = (*path, "pipelines")
        pipelines = self._mapping(path, service, _SERVICE_HINT)
        if not pipelines:
            if pipelines is not None:
                self._say(path, "is empty", _SERVICE_HINT)
            self._used |= {"receivers": None, "exporters": None}
            return extensions, {}
        return extensions, {id_: self._pipeline((*path, id_), id_, pipelines, sections) for id_ in pipelines}

    def _single(self, path: Path, extensions: tuple[str, ...]) -> None:
        first: dict[str, str] = {}
        for index, id_ in enumerate(extensions):
            type_ = self._components.type_of(id_)
            if first.setdefault(type_, id_) != id_ and type_ in self._components.single:
                self._say(
                    (*path, index), f"{quoted_name(id_)} is a second {type_}; there is one for all", "keep one of them"
                )

    def _telemetry(self) -> Settings:
        model = self._components.telemetry
        service = self._document.values.get("service")
        body = service.get("telemetry") if isinstance(service, Mapping) else None
        return self._settings(("service", "telemetry"), body, model) or model()

    def _extensions_of_components(self, sections: Mapping[str, _Section | None]) -> None:
        """Check that the extensions that settings name exist and have the right type."""
        extensions = sections["extensions"]
        components = [(kind, *one) for kind, section in sections.items() for one in (section or {}).items()]
        for kind, id_, settings in components if extensions is not None else ():
            for below, name, wanted in extensions_of(settings) if settings is not None else ():
                fitting = [one for one in extensions or () if self._components.type_of(one) == wanted.type]
                if name in fitting:
                    continue
                there = name in (extensions or ())
                shown = quoted_name(name)
                message = f"{shown} is not a {wanted.type}" if there else f"there is no extension {shown}"
                hint = hint_for(name, fitting) or f"add a {wanted.type} to extensions, or leave the key out"
                self._say((kind, id_, *below), message, hint)

    def _pipeline(
        self, path: Path, id_: str, pipelines: Mapping[str, object], sections: Mapping[str, _Section | None]
    ) -> Pipeline:
        signal = id_.partition("/")[0]
        body = None
        if signal in _SIGNALS:
            self._say(
                path,
                "only logs pipelines are supported",
                "a change is a log record: leave it out, or name it logs or logs/NAME",
            )
        elif signal != "logs":
            self._say(path, "is not the id of a pipeline", "name it logs or logs/NAME")
        else:
            if why := _why_not_id(id_):
                self._say(path, why, "the id of a pipeline is logs or logs/NAME")
            body = self._mapping(path, pipelines, _SERVICE_HINT)
        if body is None:
            self._used |= {"receivers": None, "exporters": None}
            return Pipeline((), ())
        self._keys(path, body, ("receivers", "exporters"), refused=("processors",))
        return Pipeline(
            self._references((*path, "receivers"), body, "receivers", sections),
            self._references((*path, "exporters"), body, "exporters", sections),
        )

    def _references(
        self, path: Path, parent: Mapping[str, object], kind: str, sections: Mapping[str, _Section | None]
    ) -> tuple[str, ...]:
        """A list of ids, each of which has to exist."""
        hint = f"name at least one {_KINDS[kind]}"
        items = self._present(path, parent, hint)
        if items is not None and not isinstance(items, list):
            self._say(path, "must be a list", LIST_HINT)
            items = None
        if items is None:
            self._used[kind] = None
            return ()
        if not items and kind != "extensions":
            self._say(path, "is empty", hint)
        found: dict[str, None] = {}
        for index, item in enumerate(items):
            if isinstance(item, Unknown):
                self._used[kind] = None
            elif not isinstance(item, str):
                self._say((*path, index), "must be a string")
            elif item in found:
                self._say((*path, index), f"{quoted_name(item)} is there twice", "remove one of the two")
            else:
                found[item] = None
                self._refer((*path, index), item, kind, sections[kind])
        return tuple(found)

    def _refer(self, path: Path, id_: str, kind: str, section: _Section | None) -> None:
        used = self._used[kind]
        if section is None:
            return
        if id_ not in section:
            id_ = self._misspelt.get((kind, id_), id_)
        if id_ not in section:
            advice = self._components.unsupported.get(kind, {}).get(id_.partition("/")[0])
            hint = advice or hint_for(id_, section) or f"add it to {kind}"
            self._say(path, f"there is no {_KINDS[kind]} {quoted_name(id_)}", hint)
        if used is not None:
            # A misspelt reference is one mistake: what was meant counts as used.
            used.add(id_ if id_ in section else closest(id_, section) or id_)

    def _unused(self, kind: str, section: _Section | None, pipeline: str) -> None:
        used = self._used[kind]
        if used is None:
            return
        where = render(("service", "pipelines", pipeline, kind) if kind != "extensions" else ("service", kind))
        message = "is not used by any pipeline" if kind != "extensions" else "is not used by the service"
        for id_ in section or {}:
            if id_ not in used:
                self._say((kind, id_), message, f"add it to {where}, or remove it")

    def _mapping(
        self, path: Path, parent: Mapping[str, object], hint: str, *, required: bool = True
    ) -> Mapping[str, object] | None:
        """The mapping at the path; None if there is none that can be read."""
        value = self._present(path, parent, hint, required=required)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            self._say(path, "must be a mapping", hint if path[0] == "service" else _SECTION_HINT)
            return None
        return value

    def _present(self, path: Path, parent: Mapping[str, object], hint: str, *, required: bool = True) -> object:
        """The value at the path; None if there is none, or if it could not be read."""
        key = path[-1]
        value = parent.get(key) if isinstance(key, str) else None
        if value is None and required and path not in self._meant:
            self._say(path, "has no value" if key in parent else "is required", hint)
        return None if isinstance(value, Unknown) else value

    def _keys(
        self, path: Path, values: Mapping[str, object], known: tuple[str, ...], *, refused: tuple[str, ...] = ()
    ) -> None:
        """Say which keys are unknown, and remember which were meant by them.

        `refused` are keys that only the Collector has here. One without a value is accepted.
        """
        for key, value in values.items():
            if key in refused:
                if value not in (None, [], {}) and not isinstance(value, Unknown):
                    self._say((*path, key), f"{key} are not supported", self._instead_of(key, value))
            elif key not in known:
                is_of_pipeline = path == ("service",) and key in ("receivers", "exporters")
                self._say((*path, key), "unknown key", _PIPELINE_HINT if is_of_pipeline else hint_for(key, known))
                near = closest(key, known)
                if near is not None:
                    self._meant.add((*path, near))

    def _instead_of(self, kind: str, written: object) -> str:
        """Advice for processors or connectors, by their types where each is known."""
        ids = list(written) if isinstance(written, Mapping | list) else []
        advice = self._components.unsupported.get(kind, {})
        types = dict.fromkeys(id_.partition("/")[0] if isinstance(id_, str) else "" for id_ in ids)
        if not types or not all(type_ in advice for type_ in types):
            return _ADVICE[kind]
        return "; ".join(f"{type_}: {advice[type_]}" for type_ in types)

    def _say(self, path: Path, message: str, hint: str | None = None) -> None:
        self.problems.append(self._document.problem(path, message, hint))


def _why_not_id(id_: str) -> str | None:
    """Why a string is not an id; None if it is one."""
    type_, slash, name = id_.partition("/")
    if not type_:
        return "has no type before the /" if slash else "has no type"
    if not TYPE.fullmatch(type_):
        return "a type has letters, digits and _ only, begins with a letter and has at most 63 of them"
    if slash and not name:
        return "has no name after the /"
    if len(name) > _LONGEST_NAME:
        return f"a name has at most {_LONGEST_NAME} characters"
    if any(category(character)[0] in "ZCS" for character in name):
        return "a name has no spaces, control characters or symbols"
    return None
