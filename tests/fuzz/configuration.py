"""A configuration file, or two of them with a NUL between: a configuration that can be printed and read again, or
problems with their places.

No message shows what a file takes from the environment as a secret.
"""

import difflib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, Final, TypeAlias
from unittest.mock import patch

from statsig_otel.config import grammar, validation, yaml_tree
from statsig_otel.config.configuration import Configuration
from statsig_otel.config.document import NOWHERE, Document, Place
from statsig_otel.config.errors import ConfigError, Problem, render
from statsig_otel.config.merging import merge
from statsig_otel.config.reference import keys
from statsig_otel.config.resolved import plain_values, to_yaml
from statsig_otel.config.source import _Builder, parse
from statsig_otel.config.substitution import Substitution
from statsig_otel.plugin.settings.catalog import COMPONENTS
from tests.fuzz.targets import Check, Mutate, is_chosen
from tests.fuzz.trees import change

ROOT: Final = Path(__file__).parents[2]
FILE: Final = "config.yaml"
DIRECTORY: Final = Path("/nonexistent")
Read: TypeAlias = Callable[[bytes], Document]
SECRET: Final = "s3cr3t-0f-the-environment"
HEADER: Final = "authorization:Bearer t0ken-in-the-file"
"""A header that somebody forgot to write as a key and a value. As a key it is not a name."""
ENVIRON: Final[Mapping[str, str]] = {"SECRET": SECRET, "NAME": "statsig", "PORT": "4317", "EMPTY": ""}

LONGEST: Final = 2048
ENOUGH: Final = 10_000_000
SHARE: Final = 64
"""Of so many inputs one also goes through the parser of YAML, which takes longer than all the rest."""
MOST_REMEMBERED: Final = 1 << 15
"""Components that are remembered at a time."""

MOST_BRACKETS: Final = 400
"""More can be nested more deeply than JSON is read here."""

TOKENS: Final = (
    b"receivers:\n", b"exporters:\n", b"service:\n", b"extensions:\n", b"pipelines:", b"logs:", b"telemetry:",
    b"statsig", b"otlp_grpc", b"otlp_http", b"file_storage", b"debug", b"signing_secrets:", b"endpoint:", b"headers:",
    b"tls:", b"insecure:", b"mapping:", b"attributes:", b"filter:", b"include:", b"impacted_services:", b"rules:",
    b"sending_queue:", b"retry_on_failure:", b"timeout:", b"5s", b"1MiB", b"true", b"null", b"${env:SECRET}",
    b"${SECRET}", b"${file:x}", b"${env:NAME:-x}", b"$$", b"&a ", b"*a", b"!!str ", b"? ", b"- ", b"|\n", b">-\n",
    b"%YAML 1.2\n", b"---\n", b"...\n", b"<<: ", b"\\U00110000", b"\xef\xbb\xbf", b"\n  ", b"\n    ", b"{a: b}",
)  # fmt: skip

VALUES: Final[tuple[Any, ...]] = (
    None, True, 0, -1, 1.5, 4317, 10**30, math.inf, "", "0", "7", "5s", "1h30m", "-1ms", "64KiB", "1MiB", "true", "x",
    "localhost:8080", "http://a/b", "https://a:1?b", "unix:///x", "a:99999", "[::1]:1", "/a", "../a", "full", "gzip",
    "none", "items", "detailed", "statsig", "debug", "otlp_grpc", "otlp_http", "file_storage", "${env:SECRET}",
    "${SECRET}", "${env:NAME}", "${PORT}", "${EMPTY}", "${env:GONE}", "${env:GONE:-x}", "${file:x}", "$NAME", "\x85",
    "{name} {action:-x}", "{", "*", "[a-z]", "Bearer x", HEADER, [], {}, [None], ["statsig"], ["debug", "otlp_grpc"],
    [{}], {"SECRET": "${SECRET}"}, {"a": [1, "b"]}, "$${a} $${b}", "a: b #c\n",
)  # fmt: skip

_SMALL: Final = (
    b'{"receivers": {"statsig": {"signing_secrets": ["abcdefghijklmnop"]}}, "exporters": {"debug": {}}, '
    b'"service": {"pipelines": {"logs": {"receivers": ["statsig"], "exporters": ["debug"]}}}}'
)
_LARGE: Final = (
    b'{"receivers": {"statsig": {"signing_secrets": ["${SECRET}"], "endpoint": "localhost:8080", "filter": {"include": '
    b'[{"types": ["Gate"]}]}, "impacted_services": {"rules": [{"match": [{"names": ["a*"]}], "name": "b"}]}}}, '
    b'"exporters": {"otlp_grpc": {"endpoint": "a:1", "headers": {"x": "${SECRET}"}, "tls": {"insecure": true}}, '
    b'"file": {"path": "$$a$${b}", "sending_queue": {"queue_size": 9}}}, '
    b'"extensions": {"file_storage": {"directory": "/a"}}, "service": {"extensions": ["file_storage"], '
    b'"pipelines": {"logs": {"receivers": ["statsig"], "exporters": ["otlp_grpc", "file"]}}}}'
)
_TWICE: Final = b'{"receivers": {"statsig": {"signing_secrets": ["${SECRET}"], "mapping": {"drop": ["${SECRET}"]}}}}'
GOOD: Final = (_SMALL, _LARGE, _SMALL + b'\0{"exporters": {"debug": {"verbosity": "detailed"}, "file": {"path": "a"}}}')
"""Configurations without a mistake."""


def _keys() -> Iterator[tuple[tuple[str, ...], Any]]:
    """The path of each key that a file may contain, and its default."""
    for kind in ("receivers", "exporters", "extensions"):
        for type_ in COMPONENTS.of(kind) or ():
            yield (kind, type_), {}
            yield from (
                ((kind, type_, *key.path.split("::")), key.default) for key in keys(*COMPONENTS.models(kind, type_))
            )
        yield (("service", "extensions") if kind == "extensions" else ("service", "pipelines", "logs", kind)), []
    yield from ((("service", "telemetry", *key.path.split("::")), key.default) for key in keys(COMPONENTS.telemetry))


SECRET_KEYS: Final = {
    "signing_secrets", "hash_key", "api_key", "headers", "ca_pem", "cert_pem", "key_pem", "password", "token",
}  # fmt: skip
SECRETS: Final = {path for path, _ in _keys() if path[-1] in SECRET_KEYS}
"""The paths of the secrets, with types in the place of ids."""

BELOW: Final[dict[str, list[tuple[str, Any]]]] = {}
"""The keys of the mapping below a key, and their defaults, by this key; below "" those of the whole file."""
for _path, _default in _keys():
    BELOW.setdefault(_path[-2], []).append((_path[-1], _default))
    for _above, _key in pairwise(("", *_path[:-1])):
        if _key not in dict(BELOW.setdefault(_above, [])):
            BELOW[_above].append((_key, {}))
BELOW["headers"] = [("x", "${SECRET}"), (HEADER, None)]


def seeds() -> Iterator[bytes]:
    """The configurations of the examples, and the broken ones of the other tests, as JSON: `mutated` understands it."""
    yield from (*GOOD, _TWICE)
    for one in files():
        with suppress(ConfigError):
            yield json.dumps(read_as_yaml(one).values, default=str).encode()


def files() -> Iterator[bytes]:
    for folder in ("tests/config/cases", "examples"):
        found = (file for file in sorted((ROOT / folder).rglob("*.yaml")) if file.stat().st_size <= LONGEST)
        yield from (file.read_bytes() for file in found)


def mutated(data: bytes, random: Random, mutate: Mutate) -> bytes:
    """A file in JSON, which is YAML, with a few values changed: most of these reach the grammar. A few become YAML."""
    if not random.randrange(128):
        return mutate(data)
    parts = (data if random.randrange(4) else random.choice(GOOD)).split(b"\0", 1)
    at = random.randrange(len(parts))
    try:
        document = json.loads(parts[at])
    except (ValueError, RecursionError):
        document = json.loads(random.choice((_SMALL, _LARGE)))
    change(document, random, mutate, keys_below=lambda name: BELOW.get(name) or BELOW[""], values=VALUES)
    parts[at] = json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return b"\0".join(parts)


@contextmanager
def checking() -> Iterator[Check]:
    below = lru_cache(maxsize=1 << 14)(validation._below)  # what keys the models have does not change
    validate, compose = Remembered(validation.validate), Remembered(validation.compose)

    def check(data: bytes) -> None:
        quick = is_json(data)
        validate.is_used = compose.is_used = quick
        if quick:
            check_one(data, read_quickly)
        if not quick or is_chosen(data, SHARE):
            validate.is_used = compose.is_used = False
            check_one(data, read_as_yaml)

    matches = lru_cache(maxsize=1 << 14)(difflib.get_close_matches)
    with (
        patch.object(validation, "_below", lambda annotations, step: below(tuple(annotations), step)),
        patch.object(difflib, "get_close_matches", lambda word, words, n: matches(word, tuple(words), n)),
        patch.object(grammar, "validate", validate),
        patch.object(grammar, "compose", compose),
    ):
        yield check


class Remembered:
    """Finds the verdict on a component's settings once: most inputs differ from an earlier one in one component.

    Attributes:
        is_used: Whether all that a verdict depends on are the values: in JSON, where all of them stand in one line.
    """

    def __init__(self, judge: Callable[..., Any]) -> None:
        self.is_used = False
        self._judge = judge
        self._found: dict[object, Any] = {}

    def __call__(self, *arguments: Any) -> Any:
        if not self.is_used:
            return self._judge(*arguments)
        *models, body, path, _ = arguments
        key = (*models, path, repr(body))
        if key not in self._found:
            if len(self._found) >= MOST_REMEMBERED:
                self._found.clear()
            self._found[key] = self._judge(*arguments)
        return self._found[key]


def check_one(data: bytes, read: Read) -> None:
    configuration = outcome(data, read)
    if configuration is not None:
        check_printed(configuration, read)


def outcome(data: bytes, read: Read) -> Configuration | None:
    """The configuration; None if there are problems."""
    merged = NOWHERE
    try:
        documents = [read(one) for one in data.split(b"\0", 1)]
        merged = merge(documents)
        configuration = grammar.check(merged, COMPONENTS)
    except ConfigError as error:
        check_problems(error, data)
        check_secrets(error, merged)
        return None
    check_names(configuration, documents)
    return configuration


def read_as_yaml(data: bytes) -> Document:
    return parse(data, file=FILE, directory=DIRECTORY, environ=ENVIRON)


def is_json(data: bytes) -> bool:
    """Whether all files are mappings in JSON, which is YAML."""
    try:
        found = [json.loads(one) for one in data.split(b"\0", 1)]
        json.dumps(found, ensure_ascii=False).encode()  # an error for half of a character, which `parse` reports
    except (ValueError, RecursionError):
        return False
    return all(isinstance(one, dict) for one in found) and data.count(b"[") + data.count(b"{") <= MOST_BRACKETS


def read_quickly(data: bytes) -> Document:
    """The document in a file in JSON, without the parser of YAML, which takes ten times as long; `yaml` is for that."""
    values: dict[str, Any] = {}
    found: list[Document] = []
    for section, components in json.loads(data).items():
        if isinstance(components, dict) and components:
            values[section] = {}
            for id_, body in components.items():
                found.append(part({section: {id_: body}}))
                values[section] |= found[-1].values[section]
        else:
            found.append(part({section: components}))
            values |= found[-1].values
    return Document(
        values,
        {(): Place(FILE, 1, directory=DIRECTORY)}
        | {path: place for one in found for path, place in one.places.items()},
        tuple(problem for one in found for problem in one.problems),
        tuple(problem for one in found for problem in one.unresolved),
        {path: string for one in found for path, string in one.file_backed.items()},
        tuple(doubt for one in found for doubt in one.doubts),
    )


def part(values: Mapping[str, Any]) -> Document:
    """The document with one component, or one section that has none. Each is made once."""
    key = repr(values)
    if key not in PARTS:
        if len(PARTS) >= MOST_REMEMBERED:
            PARTS.clear()
        try:
            root = tree(values)
            assert isinstance(root, yaml_tree.Mapping)
            PARTS[key] = _Builder(FILE, DIRECTORY, Substitution(ENVIRON, DIRECTORY)).document(root)
        except yaml_tree.TreeError as error:
            raise ConfigError([Problem((), error.message, error.hint, FILE, error.line)]) from None
    return PARTS[key]


PARTS: Final[dict[str, Document]] = {}


def tree(value: Any) -> yaml_tree.Node:
    if isinstance(value, dict):
        return yaml_tree.Mapping(1, [(tree(key), tree(item)) for key, item in value.items()])
    if isinstance(value, list):
        return yaml_tree.Sequence(1, [tree(item) for item in value])
    if isinstance(value, str):
        return yaml_tree.Scalar(1, value, value, plain=False)
    return yaml_tree.Scalar(1, json.dumps(value), value, plain=True)


def check_problems(found: ConfigError, data: bytes) -> None:
    assert found.problems
    text = str(found)
    assert text.replace("\n", " ").isprintable()
    text.encode()
    last = data.count(b"\n") + data.count(b"\r") + data.count(b"\x85") + 2 * data.count(b"\xe2") + 1
    for problem in found.problems:
        assert problem.file == FILE
        assert problem.line is not None
        assert problem.line <= last
        assert problem.message
        assert HEADER not in render(problem.path)
    for secret in (SECRET, HEADER):
        if secret in text:
            assert not [one for one in found.problems if secret in str(one) and is_for_secrets(one.path)]


def check_secrets(found: ConfigError, document: Document) -> None:
    """No message about a component shows what is a secret of that component, also where it is written again."""
    for kind in ("receivers", "exporters"):
        section = document.values.get(kind)
        for id_, body in section.items() if isinstance(section, Mapping) else ():
            values = body if isinstance(body, Mapping) else {}
            written = values.get("signing_secrets" if kind == "receivers" else "headers")
            secrets = [*written.values()] if isinstance(written, dict) else written if isinstance(written, list) else []
            if SECRET in secrets:
                assert not [one for one in found.problems if one.path[:2] == (kind, id_) and SECRET in str(one)]


def check_names(configuration: Configuration, documents: Sequence[Document]) -> None:
    """Nothing that is written is left out."""
    for name, section in (("receivers", configuration.receivers), ("exporters", configuration.exporters)):
        assert section.keys() == {id_ for one in documents for id_ in of(one.values.get(name))}
    for pipeline in configuration.pipelines.values():
        assert configuration.receivers.keys() >= set(pipeline.receivers)
        assert configuration.exporters.keys() >= set(pipeline.exporters)


def of(section: object) -> Iterable[object]:
    return section if isinstance(section, Mapping) else ()


def is_for_secrets(path: tuple[str | int, ...]) -> bool:
    """Whether a value is a secret. What a file writes into other values may be shown."""
    keys_above = [COMPONENTS.type_of(key) if at == 1 else key for at, key in enumerate(path) if isinstance(key, str)]
    return any(tuple(keys_above[:end]) in SECRETS for end in range(len(keys_above) + 1))


def check_printed(configuration: Configuration, read: Read) -> None:
    """What is printed reads as the same configuration, with some secret in the place of each, since none is printed."""
    values = plain_values(configuration)
    print_it = json.dumps if read is read_quickly else to_yaml
    printed = print_it(values)
    for one in (*configuration.receivers.values(), *configuration.exporters.values()):
        assert SECRET not in repr(one) or SECRET in printed
    again = grammar.check(read(print_it(with_secrets(values)).encode()), COMPONENTS)
    assert plain_values(again) == values


def with_secrets(value: Any, path: tuple[str | int, ...] = ()) -> Any:
    """Values with a secret in the place of each that is not printed. A directory can have the name `[REDACTED]`."""
    if isinstance(value, Mapping):
        return {key: with_secrets(one, (*path, key)) for key, one in value.items()}
    if isinstance(value, list):
        return [with_secrets(one, (*path, at)) for at, one in enumerate(value)]
    return value.replace("[REDACTED]", "${env:SECRET}") if isinstance(value, str) and is_for_secrets(path) else value
