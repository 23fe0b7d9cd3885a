"""Checks one component's settings by its model, and turns pydantic's errors into problems with paths and lines.

Each value has at most one problem, although pydantic reports one error for each type that a model allows. A `path`
starts at the document; `below` is the rest of it, from the component on.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from types import UnionType
from typing import Annotated, Any, Final, TypeAlias, TypeVar, Union, cast, get_args, get_origin

from pydantic import AliasChoices, BaseModel, ValidationError
from pydantic_core import ErrorDetails

from statsig_otel.config.document import NOWHERE, Document, Unknown
from statsig_otel.config.errors import NOT_A_NAME, Fault, Path, Problem, SettingError, closest, hint_for, list_of
from statsig_otel.config.opaque import Opaque
from statsig_otel.config.scalars import resolve
from statsig_otel.config.strict_model import StrictModel
from statsig_otel.config.units import AS_WRITTEN, Duration, formatter_of
from statsig_otel.config.values import OrList, ReadApart, is_path, without_these

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+")

_S = TypeVar("_S", bound=StrictModel)
_C = TypeVar("_C", bound=StrictModel)

Models: TypeAlias = tuple[type[StrictModel], ...]
"""The models that read one mapping, each its own keys."""

_NOT_HERE: Final = "is a key of the Collector that is not supported here"
_EMPTY: Final = "empty"
_IS_EMPTY: Final = "is empty"
_WRITE_ONE: Final = "write one, or remove the key"
LIST_HINT: Final = "write [A, B], or a line with - A for each"
MAPPING_HINT: Final = "write {KEY: VALUE}, or a line with KEY: VALUE for each"

_A_STRING: Final = "a string"
_A_MAPPING: Final = "a mapping"
# By pydantic's error types. In braces: keys of the error's context.
_TYPES: Final = {
    kind: words
    for words, kinds in {
        _A_STRING: "string_type string_sub_type",
        "true or false": "bool_type bool_parsing",
        "a whole number": "int_type int_parsing int_from_float",
        "a whole number of at most 4300 digits": "int_parsing_size",
        "a number": "float_type float_parsing decimal_type decimal_parsing",
        "a list": "list_type tuple_type set_type frozen_set_type iterable_type",
        _A_MAPPING: "dict_type mapping_type model_type model_attributes_type dataclass_type",
        "a path": "path_type",
        "{expected}": "literal_error enum",
    }.items()
    for kind in kinds.split()
}
_WORDS: Final = {
    "missing": "is required",
    "string_unicode": "is not valid Unicode",
    "finite_number": "must be a finite number",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match {pattern}",
    "too_long": "must have at most {max_length} items",
}


def validate(
    model: type[_S], body: Mapping[str, object], path: Path, document: Document
) -> tuple[_S | None, list[Problem]]:
    """The settings of a component, or what is wrong with `body`, which stands at a path of the document.

    A number or a boolean that is refused is tried again as a string: `name: 007` may mean the string `007`.
    """
    return _checked(lambda value: _read(model, value), (model,), body, path, document)


def compose(
    composed: type[_C], model: type[StrictModel], body: Mapping[str, object], path: Path, document: Document
) -> tuple[_C | None, list[Problem]]:
    """The same for a component whose mapping also contains the keys of `composed`, which its whole section has."""
    shared = {name for name, _ in _names(composed)} | set(composed.implied)

    def read(value: Mapping[str, object]) -> tuple[_C | None, list[ErrorDetails]]:
        settings, wrong = _read(model, {key: item for key, item in value.items() if key not in shared})
        own: dict[str, object] = {"settings": settings or model.model_construct()}
        whole, also_wrong = _read(composed, {key: item for key, item in value.items() if key in shared} | own)
        return (None if wrong else whole), [*also_wrong, *wrong]

    return _checked(read, (composed, model), body, path, document)


_IN_CODE: Final[Mapping[str, str | Callable[[re.Match[str]], str]]] = {
    r'"([^"$]*)\$\{env:(\w+)\}"': lambda found: " + ".join([f'"{found[1]}"'] * bool(found[1]) + [_variable(found[2])]),
    re.escape(LIST_HINT): "write [A, B]",
    re.escape(MAPPING_HINT): 'write {"KEY": VALUE}',
    r"\bwrite (\w+: )?\{enabled: (true|false)\}": lambda found: f'write {{"enabled": {found[2].title()}}}',
    r"\bwrite (true|false)(: to YAML 1\.2 .*)?$": lambda found: f"write {found[1].title()}",
    r"\bmust be true(,| or) false\b": r"must be True\1 False",
    r"\b([a-z_]+): (true|false)\b": lambda found: f"{found[1]}={found[2].title()}",
}
"""What stands in messages and hints about files, and what stands there for code."""


def problems_of(model: type[StrictModel], values: object, error: ValidationError) -> list[Problem]:
    """The problems of settings that are made in code."""
    found = _by_place(error.errors(include_url=False), values)
    problems = [in_code(problem) for problem in _problems(found, (model,), values, (), NOWHERE)]
    return [problem if problem.path else replace(problem, path=(model.__name__,)) for problem in problems]


def in_code(problem: Problem) -> Problem:
    """A problem of a file in the words of somebody who writes code."""
    message, hint = problem.message, problem.hint
    for written, instead in _IN_CODE.items():
        message, hint = re.sub(written, instead, message), hint and re.sub(written, instead, hint)
    return replace(problem, message=message, hint=hint)


def _variable(name: str) -> str:
    return f'os.environ["{name}"]'


def _read(model: type[_S], value: object) -> tuple[_S | None, list[ErrorDetails]]:
    try:
        return cast("_S", model.__pydantic_validator__.validate_python(value, context=AS_WRITTEN)), []
    except ValidationError as error:
        return None, error.errors(include_url=False)


def _checked(
    read: Callable[[Any], tuple[_S | None, list[ErrorDetails]]],
    models: Models,
    body: Mapping[str, object],
    path: Path,
    document: Document,
) -> tuple[_S | None, list[Problem]]:
    """Read settings, and again with strings in the place of numbers and booleans that were refused; see `validate`."""
    tried: set[Path] = set()
    about_numbers: dict[Path, Problem] = {}
    value: Any = body
    while True:
        settings, errors = read(_with_paths(value, models, path, document))
        if settings is not None:
            return settings, []
        # A value that could not be read has a problem already, so the errors of the models about it are left out.
        found = _by_place(errors, value)
        problems = _problems(found, models, value, path, document)
        strings = {
            problem.path: problem for problem in problems if problem.path not in tried and _as_string(problem, document)
        }
        if not strings:
            return None, [about_numbers.get(problem.path, problem) for problem in problems]
        tried |= strings.keys()
        # Where a string was wanted, the error about the string says more than the one about the number.
        wants_string = {path + below for below, (_, details) in found.items() if _wanted(details) == [_A_STRING]}
        about_numbers |= {place: problem for place, problem in strings.items() if place not in wants_string}
        value = _with_strings(value, path, {place: _as_string(problem, document) for place, problem in strings.items()})


def _as_string(problem: Problem, document: Document) -> str | None:
    place = document.places.get(problem.path)
    return place.text if place else None


def _with_strings(value: object, path: Path, strings: Mapping[Path, str | None]) -> object:
    """The value at the path, with some values in it replaced by strings."""
    if path in strings:
        return strings[path]
    if isinstance(value, Mapping):
        return {key: _with_strings(item, (*path, key), strings) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_strings(item, (*path, index), strings) for index, item in enumerate(value)]
    return value


def _by_place(errors: Iterable[ErrorDetails], body: object) -> dict[Path, tuple[object, list[ErrorDetails]]]:
    """By its path each value that is wrong, and the errors about it."""
    found: dict[Path, tuple[object, list[ErrorDetails]]] = {}
    for details in errors:
        below, value = _follow(body, details)
        found.setdefault(below, (value, []))[1].append(details)
    return found


def _with_paths(value: Any, annotations: Collection[Any], path: Path, document: Document) -> Any:
    """The value with absolute paths. Relative ones start at the directory of the file that they were written in."""
    if isinstance(value, Mapping):
        below = {key: _below(annotations, key) for key in value}
        return {key: _with_paths(item, below[key], (*path, key), document) for key, item in value.items()}
    if isinstance(value, list):
        return [
            _with_paths(item, _below(annotations, index), (*path, index), document) for index, item in enumerate(value)
        ]
    place = document.places.get(path)
    if not isinstance(value, str) or not value or place is None or place.directory is None:
        return value
    return str((place.directory / value).absolute()) if _wants_path(annotations) else value


def _wants_path(annotations: Iterable[Any]) -> bool:
    for annotation in annotations:
        if is_path(annotation):
            return True
        arguments = get_args(annotation)
        if get_origin(annotation) is Annotated:
            arguments = arguments[:1]
        elif get_origin(annotation) not in (Union, UnionType):
            continue
        if _wants_path(arguments):
            return True
    return False


def _problems(
    by_place: Mapping[Path, tuple[object, list[ErrorDetails]]],
    models: Models,
    body: object,
    path: Path,
    document: Document,
) -> list[Problem]:
    # If something is wrong further down, the type was right.
    right = {place[:end] for place in by_place for end in range(len(place))}
    meant: set[Path] = set()
    missing: set[Path] = set()
    problems: dict[Path, Fault] = {}
    for below, (value, found) in by_place.items():
        if below in right or isinstance(value, Unknown):
            continue
        if found[0]["type"] == "extra_forbidden":
            if advice := _instead(models, below, value):
                implied = in_words(_advice("implied", models, below) or ())
                message = f"can only be {implied} here" if implied not in ("", _EMPTY) else _NOT_HERE
                problems[below] = Fault(message, advice)
                continue
            key, known = str(below[-1]), _keys(_types(models, below[:-1]))
            target = _advice("meant", models, below)
            problems[below] = Fault("unknown key", f"did you mean {target}?" if target else hint_for(key, known))
            near = target.partition("::")[0] if target else closest(key, known)
            if near is not None:
                meant.add((*below[:-1], near))
        else:
            problems[below] = _with_hint(_fault(found, _types(models, below)), models, below, found)
            missing |= {below} if _is_missing(found) else set()
    # A key that is missing because it is misspelt is one mistake, not two.
    problems = {below: fault for below, fault in problems.items() if below not in meant & missing}
    for below in [one for one in problems if may_be_secret(models, one)]:
        del problems[below]
        problems[below[:-1]] = NOT_A_NAME
    secrets = tuple(_secrets(body, models))
    return [
        document.problem(path + below, without_these(secrets, message), hint and without_these(secrets, hint))
        for below, (message, hint) in problems.items()
    ]


def _with_hint(fault: Fault, models: Models, below: Path, found: list[ErrorDetails]) -> Fault:
    """The fault of one value, with what the models say to write there."""
    message, hint = fault
    key = below[-1] if below else None
    if not isinstance(key, str):
        return fault
    if _is_missing(found) or _has_no_value(found) or (message == _IS_EMPTY and hint is None):
        needed = _advice("needed", models, below)
        kinds = _models(_types(models, below))
        if needed is None and hint == _WRITE_ONE and kinds and not any(getattr(kind, "needed", {}) for kind in kinds):
            needed = f"write {key}: {{}} for its defaults, or remove the key"
        return Fault(message, needed or hint)
    is_switch = all(isinstance(details["input"], bool) for details in found)
    if _wanted(found) == [_A_MAPPING] and is_switch and "enabled" in _keys(_types(models, below)):
        return Fault(message, f"write {key}: {{enabled: {'true' if found[0]['input'] else 'false'}}}")
    return fault


def in_words(implied: Iterable[object]) -> str:
    """Values of `Settings.implied`: `true`, `pick_first or empty`, `a duration`."""
    return _one_of(list(dict.fromkeys(map(_value_in_words, implied))))


def _value_in_words(value: object) -> str:
    if value is Duration:
        return "a duration"
    if value is dict:
        return _A_MAPPING
    if value in ("", [], {}):
        return _EMPTY
    return value if isinstance(value, str) and resolve(value) == value else json.dumps(value)


def _instead(models: Models, below: Path, value: object) -> str | None:
    """The advice for a key that the models around it refuse; None if none of them refuses it."""
    holders = [model for model in _models(_types(models, below[:-1])) if issubclass(model, StrictModel)]
    return next((advice for one in holders if (advice := one.advice(str(below[-1]), value))), None)


def _advice(table: str, models: Models, below: Path) -> Any:
    """The entry for a key in `implied`, `meant` or `needed` of the models around it."""
    tables = (getattr(holder, table, {}) for holder in _models(_types(models, below[:-1])))
    return next((found[below[-1]] for found in tables if below[-1] in found), None)


def is_secret(models: Models, below: Path) -> bool:
    """Whether the value is a secret, or a list of secrets."""
    kinds = _types(models, below)
    return _wants_secret((*kinds, *_below(kinds, 0)))


def is_one_secret(models: Models, below: Path) -> bool:
    """Whether the value is a secret, and not a list of them. So no key can stand below it."""
    return _wants_secret(_types(models, below))


def is_list_of_secrets(models: Models, below: Path) -> bool:
    """Whether the value is a list of secrets, so that a key below it may be one of them."""
    kinds = [kind for kind in _members(_types(models, below)) if get_origin(kind) in (list, Sequence)]
    return any(_wants_secret(get_args(kind)) for kind in kinds)


def may_be_secret(models: Models, below: Path) -> bool:
    """Whether the last key belongs to a mapping of secrets and is not a name, as in `{authorization:Bearer TOKEN}`."""
    key = below[-1] if below else None
    return isinstance(key, str) and not _NAME.fullmatch(key) and is_one_secret(models, below)


def _wants_secret(annotations: Iterable[Any]) -> bool:
    return Opaque in _members(annotations)


def _has(value: object, step: str | int) -> bool:
    if isinstance(value, list):
        return isinstance(step, int) and step < len(value)
    return isinstance(value, Mapping) and step in value


def _follow(body: Any, details: ErrorDetails) -> tuple[Path, object]:
    """The path of an error in what was written, without pydantic's own steps (a union's member, `[key]`)."""
    path: Path = ()
    value = body
    last = len(details["loc"]) - 1
    for index, step in enumerate(details["loc"]):
        if _has(value, step):
            value = value[step]
        elif not (index == last and details["type"] == "missing"):
            continue
        path = (*path, step)
    return path, value


def _is_missing(found: list[ErrorDetails]) -> bool:
    return found[0]["type"] == "missing"


def _has_no_value(found: list[ErrorDetails]) -> bool:
    return all(details["input"] is None and details["type"] != "missing" for details in found)


def _wanted(found: list[ErrorDetails]) -> list[str]:
    """The types that the value may have, in words; none if something else is wrong with it too."""
    if not all(details["type"] in _TYPES for details in found):
        return []
    return list(dict.fromkeys(_TYPES[details["type"]].format_map(details.get("ctx", {})) for details in found))


def _fault(found: list[ErrorDetails], kinds: Collection[Any]) -> Fault:
    """The fault of one value, which has to be of one of these types."""
    if _has_no_value(found):
        errors = (details.get("ctx", {}).get("error") for details in found)
        hints = (error.hint for error in errors if isinstance(error, SettingError) and error.hint)
        return Fault("has no value", next(hints, _WRITE_ONE))
    if wanted := _wanted(found):
        return Fault(f"must be {_one_of(wanted)}", _form_of(wanted, kinds))
    details = next(details for details in found if details["type"] not in _TYPES)
    kind, context = details["type"], _bounds(details, kinds)
    if kind in ("string_too_short", "too_short"):
        least, unit = context["min_length"], "characters" if kind == "string_too_short" else "items"
        return Fault(f"must have at least {least} {unit}" if details["input"] else _IS_EMPTY)
    if kind in _WORDS:
        return Fault(_WORDS[kind].format_map(context))
    error = context.get("error")
    if isinstance(error, SettingError):
        return Fault(_one_line(error.message), error.hint and _one_line(error.hint))
    if kind in ("value_error", "assertion_error"):
        return Fault(_one_line(str(error)) or "is not valid")
    return Fault(_one_line(details["msg"].replace("Input should", "must", 1)))


def _form_of(wanted: list[str], kinds: Collection[Any]) -> str | None:
    """The form of a value that was written in another one."""
    if wanted == [_A_MAPPING]:
        return "; ".join(filter(None, [MAPPING_HINT, list_of(_keys(kinds))]))
    return LIST_HINT if wanted == ["a list"] else None


def _one_of(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _bounds(details: ErrorDetails, kinds: Collection[Any]) -> dict[str, Any]:
    """An error's context, with whole numbers written as such, and durations and sizes with their units."""
    context: dict[str, Any] = details.get("ctx", {})
    formatters = [formatter for kind in kinds if (formatter := formatter_of(kind))]
    shown = formatters[0] if formatters else _whole
    return {name: shown(value) if isinstance(value, float | int) else value for name, value in context.items()}


def _whole(value: Any) -> Any:
    """A whole number without a fraction, for a message."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _one_line(text: str) -> str:
    """A validator's words on one line. They can quote any character that the file contains; some control a terminal."""
    line = " ".join(text.splitlines())
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in line)


def _members(annotations: Iterable[Any]) -> Iterator[Any]:
    """The types that annotations allow, each by itself."""
    for annotation in annotations:
        origin = get_origin(annotation)
        if origin is Annotated:
            first, *markers = get_args(annotation)
            yield from _members([first, *(marker.items for marker in markers if isinstance(marker, OrList))])
        elif origin in (Union, UnionType):
            yield from _members(get_args(annotation))
        else:
            yield annotation


@cache
def _names(model: type[BaseModel]) -> Sequence[tuple[str, Any]]:
    """The keys that a model takes, with their types."""
    found: list[tuple[str, Any]] = []
    for name, info in model.model_fields.items():
        if any(isinstance(marker, ReadApart) for marker in info.metadata):
            continue
        alias = info.validation_alias or info.alias or name
        choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
        if model.model_config.get("populate_by_name"):
            choices = [*choices, name]
        found += [(choice, info.rebuild_annotation()) for choice in choices if isinstance(choice, str)]
    return found


def _below(annotations: Iterable[Any], step: str | int) -> tuple[Any, ...]:
    """The types of values that are one step below values of these types."""
    found: list[Any] = []
    for member in _members(annotations):
        arguments = get_args(member)
        if isinstance(member, type) and issubclass(member, BaseModel):
            found += [kind for name, kind in _names(member) if name == step]
        elif arguments:
            found.append(arguments[-1] if isinstance(step, str) else arguments[0])
    return tuple(found)


def _types(models: Models, below: Path) -> tuple[Any, ...]:
    """The types that the value at a path may have."""
    types: tuple[Any, ...] = models
    for step in below:
        types = _below(types, step)
    return types


def _models(annotations: Iterable[Any]) -> list[type[BaseModel]]:
    return [member for member in _members(annotations) if isinstance(member, type) and issubclass(member, BaseModel)]


def _keys(annotations: Iterable[Any]) -> list[str]:
    return [name for model in _models(annotations) for name, _ in _names(model)]


_SHORTEST_SECRET: Final = 4  # a shorter string is not a secret, and may be a part of the message's own words


def _secrets(value: object, annotations: Collection[Any]) -> Iterator[str]:
    """The strings that the model wants as `Opaque`."""
    if isinstance(value, str):
        if len(value) >= _SHORTEST_SECRET and _wants_secret(annotations):
            yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _secrets(item, _below(annotations, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _secrets(item, _below(annotations, index))
