"""The public names: what there is, written down in api.txt; that each is documented, typed, and of public parts.

A change of the API is a change of api.txt, so it is made on purpose: `pytest tests/test_api.py --update-golden`.
"""

import ast
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Final

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import statsig_otel

SNAPSHOT: Final = Path(__file__).parent / "api.txt"
PACKAGES: Final = ("config", "exporters", "plugin")
THROUGH: Final = {
    "statsig_otel.config.configuration.Pipeline": "a mapping does where pipelines are given",
    "statsig_otel.exporters.network.tls.TlsMaterial": "of ClientTlsSettings.read, for the exporters here",
    "statsig_otel.plugin.record.filter.ChangeFilter": "of FilterSettings.create, for Mapper",
    "statsig_otel.plugin.record.services.Concerned": "between Mapper and `statsig-otel explain`",
    "statsig_otel.plugin.record.services.ImpactedServices": "for Mapper, see StatsigReceiverSettings.mapper",
    "statsig_otel.plugin.service.dispatch.ServiceConsumer": "of Service.consumer, a Consumer whose answers are futures",
    "statsig_otel.plugin.webhook.lenient_json.Item": "in a ParsedBody, for Mapper",
    "statsig_otel.plugin.webhook.signature.Verification": "of Verifier, for Intake",
}
"""What stands in public signatures and is only handed through: nobody has to name it."""
AS_MAPPINGS: Final = {
    "statsig_otel.exporters.kafka.settings.KafkaAuthSettings",
    "statsig_otel.exporters.kafka.settings.KafkaLogsSettings",
    "statsig_otel.exporters.kafka.settings.KafkaProducerSettings",
    "statsig_otel.exporters.otlp.settings.KeepaliveSettings",
    "statsig_otel.plugin.settings.audit_log.AuditLogSettings",
    "statsig_otel.plugin.settings.mapping.MappingSettings",
    "statsig_otel.plugin.settings.receiver.DeduplicationSettings",
    "statsig_otel.plugin.settings.services.ImpactedServicesSettings",
}
"""Settings within settings that are given as mappings, through `model_validate`: versions.md says so."""


def public() -> dict[str, object]:
    """All public names, as `exporters.Batch`."""
    names: dict[str, object] = {"__version__": statsig_otel.__version__}
    for package in PACKAGES:
        module = import_module(f"statsig_otel.{package}")
        names |= {f"{package}.{name}": getattr(module, name) for name in dir(module)}
    return names


API: Final = public()
DOCUMENTED: Final = [name for name, value in API.items() if inspect.isclass(value) or inspect.isfunction(value)]


def shown(hint: object) -> str:
    """A type as one would write it, without modules, and without what is only the model's affair."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint == API["exporters.Outcome"]:
        return "Outcome"
    if isinstance(hint, str):
        return re.sub(r"\b(?:[a-zA-Z_]\w*\.)+(?=[A-Za-z_])", "", hint)
    if isinstance(hint, list):
        return f"[{', '.join(map(shown, hint))}]"
    if origin is typing.Annotated:
        return shown(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(shown, arguments))
    if origin is typing.Literal:
        return f"Literal[{', '.join(map(repr, arguments))}]"
    if arguments:
        return f"{shown(origin)}[{', '.join(map(shown, arguments))}]"
    if hint is ...:
        return "..."
    return "None" if hint is None or hint is type(None) else str(getattr(hint, "__name__", hint))


def default(value: object) -> str:
    """What holds without an argument; three dots for what no literal says."""
    return f" = {value!r}" if isinstance(value, str | int | float | bool | tuple | None) else " = ..."


def signature(function: Callable[..., object]) -> str:
    """A signature with the types of its parameters."""
    try:
        found = inspect.signature(function)
    except ValueError:  # of an exception that has no constructor of its own
        return "(...)"
    parts: list[str] = []
    slash, star = "", "*"
    for one in found.parameters.values():
        if one.kind is not one.POSITIONAL_ONLY and slash:
            parts.append(slash)
            slash = ""
        slash = "/" if one.kind is one.POSITIONAL_ONLY else slash
        if one.kind is one.KEYWORD_ONLY and star:
            parts.append(star)
        if one.kind in (one.KEYWORD_ONLY, one.VAR_POSITIONAL):
            star = ""
        mark = "*" if one.kind is one.VAR_POSITIONAL else "**" if one.kind is one.VAR_KEYWORD else ""
        type_ = f": {shown(one.annotation)}" if one.annotation is not one.empty else ""
        parts.append(f"{mark}{one.name}{type_}{default(one.default) if one.default is not one.empty else ''}")
    if slash:
        parts.append(slash)
    result = f" -> {shown(found.return_annotation)}" if found.return_annotation is not found.empty else ""
    return f"({', '.join(parts)}){result}"


def own_classes(class_: type) -> list[type]:
    """The class and those that it is built on, but for what a line of another public class says."""
    others = [one for one in API.values() if isinstance(one, type) and one is not class_ and one in class_.__mro__]
    told = {base for other in others for base in other.__mro__}
    return [one for one in class_.__mro__ if one.__module__.startswith("statsig_otel") and one not in told]


def members(class_: type) -> Iterator[str]:
    """A line for each member, sorted by name."""
    lines = {**_called(class_), **{name: f"{name}{rest}" for name, rest in _data(class_).items()}}
    yield from (lines[name] for name in sorted(lines))


def _data(class_: type) -> dict[str, str]:
    """What the instances hold beside what the constructor's line says, by name."""
    if issubclass(class_, BaseModel):
        inherited = {name for base in class_.__bases__ if base in API.values() for name in _data(base)}
        return {
            name: f": {shown(info.annotation)}{_model_default(info)}"
            for name, info in class_.model_fields.items()
            if name not in inherited
        }
    found: dict[str, str] = {}
    for one in own_classes(class_):
        if "__init__" in vars(one) and not is_dataclass(one):
            found |= _set_by(vars(one)["__init__"])
    return found


def _set_by(constructor: Callable[..., None]) -> dict[str, str]:
    """The public attributes that a constructor sets, with the type where it is written."""
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(constructor)))):
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            of_self = isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name)
            if isinstance(target, ast.Attribute) and of_self and not target.attr.startswith("_"):
                found[target.attr] = f": {ast.unparse(node.annotation)}" if isinstance(node, ast.AnnAssign) else ""
    return found


def _model_default(info: FieldInfo) -> str:
    if info.is_required():
        return ""
    return default(info.default) if info.default_factory is None else " = ..."


def _called(class_: type) -> dict[str, str]:
    """Methods, properties and the class's own values, by name."""
    lines: dict[str, str] = {}
    held = {one.name for one in fields(class_)} if is_dataclass(class_) else set()
    for one in reversed(own_classes(class_)):
        for name, member in list(vars(one).items()):
            if name.startswith(("_", "model_")) or name in held:
                continue
            inner = getattr(member, "__func__", member)
            if isinstance(member, property) and member.fget is not None:
                lines[name] = f"{name} -> {shown(inspect.signature(member.fget).return_annotation)}"
            elif inspect.isfunction(inner):
                lines[name] = f"{'async ' if inspect.iscoroutinefunction(inner) else ''}{name}{signature(inner)}"
            elif not any(hasattr(base, name) for base in one.__bases__):
                lines[name] = name
    return lines


def described(name: str, value: object) -> Iterator[str]:
    if inspect.isclass(value):
        bases = ", ".join(base.__qualname__ for base in value.__bases__ if base not in (object, typing.Generic))
        is_made = not issubclass(value, BaseModel) and not getattr(value, "_is_protocol", False)
        made = signature(value) if is_made else ""
        yield f"class {name}{f'[{bases}]' if bases else ''}{made.removesuffix(' -> None')}"
        yield from (f"    {line}" for line in members(value))
    elif inspect.isfunction(value):
        yield f"def {name}{signature(value)}"
    elif isinstance(value, str):
        yield name if name == "__version__" else f"{name} = {value!r}"
    else:
        members_of_union = typing.get_args(value) if isinstance(value, types.UnionType) else (value,)
        yield f"{name} = {' | '.join(map(shown, members_of_union))}"


def snapshot() -> str:
    names = {f"plugin.{name}": name for name in dir(statsig_otel) if name != "__version__"}
    assert {name: getattr(statsig_otel, short) for name, short in names.items()}.items() <= API.items()
    lines = [f"{short} = {name}" for name, short in names.items()]
    lines += [line for name, value in sorted(API.items()) for line in described(name, value)]
    return "".join(f"{line}\n" for line in lines)


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="another version of Python writes annotations otherwise")
def test_the_api_is_what_was_written_down(update_golden: bool) -> None:
    """On purpose: `pytest tests/test_api.py --update-golden`, a line in the changelog, and what versions.md says."""
    if update_golden:
        SNAPSHOT.write_text(snapshot())
    assert snapshot().splitlines() == SNAPSHOT.read_text().splitlines()


def test_every_public_name_is_documented_with_an_example() -> None:
    """tests/test_pure_part.py runs the examples."""
    assert [name for name in DOCUMENTED if "\nExample:\n    >>> " not in (inspect.getdoc(API[name]) or "")] == []


def told(source: object) -> str:
    """A docstring without its example."""
    return (source.__doc__ or "").partition("Example:\n")[0]


def functions() -> Iterator[tuple[str, Callable[..., object], str]]:
    """Functions, methods and constructors, each with what has to tell of its parameters."""
    for name in DOCUMENTED:
        value = API[name]
        if inspect.isfunction(value):
            yield name, value, told(value)
        for one in own_classes(value) if isinstance(value, type) else ():
            for member, found in vars(one).items():
                inner = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
                if not inspect.isfunction(inner):
                    continue
                if member == "__init__" and not is_dataclass(one) and not getattr(one, "_is_protocol", False):
                    yield f"{name}()", inner, "\n".join(told(source) for source in (value, one, inner))
                elif not member.startswith("_"):
                    yield f"{name}.{member}", inner, told(inner)


FUNCTIONS: Final = list(functions())
_CALLED_BY_OTHERS: Final = {"self", "cls", "req", "resp", "scope", "receive", "send", "environ", "start_response"}
"""The parameters of what Falcon and ASGI call."""


def test_every_parameter_and_field_is_told_of() -> None:
    """By its name: in `Args`, in `Attributes`, in a sentence, or where `see` or `made by` says who tells."""
    missing = []
    for name, function, documentation in FUNCTIONS:
        parameters = [one for one in inspect.signature(function).parameters if one not in _CALLED_BY_OTHERS]
        if not documentation.strip() or (len(parameters) > 1 and not re.search(r"\b([Ss]ee|Made by) `", documentation)):
            missing += [f"{name}: {one}" for one in parameters if not re.search(rf"\b{one}\b", documentation)]
    for name in DOCUMENTED:
        value = API[name]
        if isinstance(value, type) and is_dataclass(value):
            about = told(value)
            missing += [f"{name}: {one.name}" for one in fields(value) if not re.search(rf"\b{one.name}\b", about)]
    assert missing == []


def named_in(hint: object) -> Iterator[type]:
    """The classes of this package that a type is made of."""
    if isinstance(hint, type) and hint.__module__.startswith("statsig_otel"):
        yield hint
    for argument in typing.get_args(hint):
        for one in argument if isinstance(argument, list | tuple) else (argument,):
            yield from named_in(one)


def test_what_is_public_is_typed_by_what_is_public() -> None:
    """Whoever writes a function around it, or passes settings within settings, can name the types.

    `make check` looks whether all are known.
    """
    values = [value for value in API.values() if isinstance(value, type)]
    hints = [(name, typing.get_type_hints(function)) for name, function, _ in FUNCTIONS]
    hints += [(name, typing.get_type_hints(API[name])) for name in DOCUMENTED if isinstance(API[name], type)]
    hidden = {
        f"{one.__module__}.{one.__qualname__}": f"{name}: {key}"
        for name, found in hints
        for key, hint in found.items()
        for one in named_in(hint)
        if not key.startswith("_") and one not in values
    }
    known = THROUGH.keys() | AS_MAPPINGS
    assert {one: where for one, where in hidden.items() if one not in known} == {}
    assert known <= hidden.keys()
