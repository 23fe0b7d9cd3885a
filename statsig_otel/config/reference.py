"""Makes the JSON Schema of the configuration file, and tables of its keys, from the components' models.

The schema (draft 2020-12) is for editors and the YAML language server. It accepts a little more than the reader does:
checks of two keys together, or of the machine, are left out. As in the file, a string may be written without quotes, a
number or a boolean with them, and each may be a string that contains a `${...}`.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeAlias

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, models_json_schema
from pydantic_core import core_schema

from statsig_otel.config.configuration import Components
from statsig_otel.config.model import Settings
from statsig_otel.config.opaque import Opaque
from statsig_otel.config.units import DURATION_SCHEMA, Duration, formatter_of
from statsig_otel.config.validation import Models

Schema: TypeAlias = dict[str, Any]

_STRING: Final = ["string", "number", "boolean"]
_REFERENCE: Final[Schema] = {"type": "string", "pattern": r"\$\{", "title": "reference"}
_REFERENCE_PATH: Final[Schema] = {"$ref": "#/$defs/reference"}
_WHOLE: Final = r"0x[0-9a-fA-F]+|0o[0-7]+|[-+]?[0-9][0-9_]*(\.0*)?|[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE]\+?[0-9]+"
_NUMBER_STRING: Final = rf"{_WHOLE}|[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?"
_AS_STRING: Final[Mapping[str, Schema]] = {
    "integer": {"type": "string", "pattern": rf"^\s*({_WHOLE})\s*$|\$\{{", "title": "whole number as a string"},
    "number": {"type": "string", "pattern": rf"^\s*({_NUMBER_STRING})\s*$|\$\{{", "title": "number as a string"},
    "boolean": {
        "type": "string",
        "pattern": r"^\s*([Tt]rue|TRUE|[Ff]alse|FALSE)\s*$|\$\{",
        "title": "true or false as a string",
    },
}
"""A number or a boolean as a string, which the value of a variable always is."""

_STRINGS: Final[Mapping[str, Schema]] = {name: {"$ref": f"#/$defs/{name}_string"} for name in _AS_STRING}
_OTHER_FORMS: Final = (_REFERENCE_PATH, *_STRINGS.values())
_ABOUT: Final = ("description", "default", "examples", "deprecated")
_BOUNDS: Final = {"gt": "more than", "ge": "at least", "le": "at most"}
_NUMBER: Final = re.compile(r"[0-9]+(\.[0-9]+)?")
_ATTRIBUTE: Final = re.compile(r"^    (\w+): (.+(?:\n {8,}.+)*)", re.MULTILINE)
_NOTHING: Final[Schema] = {
    "type": ["object", "array", "null"],
    "maxProperties": 0,
    "maxItems": 0,
    "deprecated": True,
    "description": "Not supported.",
}
_ID: Final = {"type": "string", "description": "An id: TYPE or TYPE/NAME."}


class _Generator(GenerateJsonSchema):
    """pydantic's generator, adapted to the grammar of the file."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - pydantic's signature
        return False

    def str_schema(self, schema: core_schema.StringSchema) -> Schema:
        return {**super().str_schema(schema), "type": _STRING}

    def literal_schema(self, schema: core_schema.LiteralSchema) -> Schema:
        return {"enum": _written(schema["expected"])}

    def enum_schema(self, schema: core_schema.EnumSchema) -> Schema:
        return {"enum": _written([member.value for member in schema["members"]])}

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> Schema:
        return {"anyOf": [self.generate_inner(one) for one in reversed(schema["choices"].values())]}

    def dict_schema(self, schema: core_schema.DictSchema) -> Schema:
        # pydantic's own removes the titles of the values.
        return {**super().dict_schema(schema), "additionalProperties": self.generate_inner(schema["values_schema"])}

    def json_or_python_schema(self, schema: core_schema.JsonOrPythonSchema) -> Schema:
        found = super().json_or_python_schema(schema)
        function: Any = schema["json_schema"].get("function")
        return {**found, "title": "secret"} if function and function.get("function") is Opaque else found

    def model_schema(self, schema: core_schema.ModelSchema) -> Schema:
        model = schema["cls"]
        found: Schema = super().model_schema(schema)
        found.pop("title", None)
        if "description" in found:
            found["description"] = _summary(model)
        told = _attributes(model)
        defaults = model.model_construct().model_dump(mode="json", by_alias=True)
        if issubclass(model, Settings):
            found.setdefault("properties", {}).update(_implied(model))
        for key, value in found.get("properties", {}).items():
            if key in told:
                value.setdefault("description", told[key])
            if key in defaults and "$ref" not in value:
                value["default"] = defaults[key]
        for name, field in model.model_fields.items():
            value = found.get("properties", {}).get(field.alias or name, {})
            if (bounds := _bounds(field)) and "description" in value:
                value["description"] += f" {bounds}"
        return found


def _bounds(field: FieldInfo) -> str:
    """The least and the most of a field, as a sentence; empty if it has none, or only that it is not negative."""
    found = {name: getattr(one, name) for one in field.metadata for name in _BOUNDS if hasattr(one, name)}
    if not found:
        return ""
    shown = formatter_of(Annotated[field.annotation, *field.metadata]) or str
    words = [
        f"{word} {shown(found[name]) if found[name] else 0}"
        for name, word in _BOUNDS.items()
        if name in found and (name, found[name]) != ("ge", 0)
    ]
    sentence = " and ".join(words)
    return f"{sentence[:1].upper()}{sentence[1:]}." if sentence else ""


def _implied(model: type[Settings]) -> dict[str, Schema]:
    """The schemas of keys that have no effect, since what they ask for happens anyway."""
    types: dict[object, Schema] = {Duration: dict(DURATION_SCHEMA), dict: {"type": "object"}}
    found: dict[str, Schema] = {}
    for key, values in model.implied.items():
        words = [value for value in values if not isinstance(value, type) and value is not Duration]
        forms = [types[one] for one in values if one not in words]
        forms += [{"type": "null"}] if any(word in ("", [], {}) for word in words) else []
        found[key] = {
            "anyOf": [*([{"enum": _written(words)}] if words else []), *forms],
            "description": f"Changes nothing: {model.unsupported.get(key, 'it is so anyway')}.",
            "deprecated": True,
        }
    return found


def _written(values: list[Any]) -> list[Any]:
    """The words as they may be written: `1.2` also without quotes."""
    numbers = [float(value) for value in values if isinstance(value, str) and _NUMBER.fullmatch(value)]
    return [*values, *numbers]


def _summary(model: type[BaseModel]) -> str:
    return " ".join((inspect.getdoc(model) or "").partition("\n\n")[0].split())


def _attributes(model: type[BaseModel]) -> dict[str, str]:
    """The descriptions of keys in docstrings (Google style, "Attributes"), for fields without one of their own."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, Settings):
            _, _, section = (inspect.cleandoc(base.__doc__ or "")).partition("Attributes:\n")
            found |= {key: " ".join(text.split()) for key, text in _ATTRIBUTE.findall(section)}
    return found


def _definitions(mappings: list[Models]) -> tuple[dict[Models, str], dict[str, Schema]]:
    """For mappings, each by the models that read it: the name of its definition, and all definitions."""
    models = dict.fromkeys(model for mapping in mappings for model in mapping)
    references, found = models_json_schema([(model, "validation") for model in models], schema_generator=_Generator)
    names = {model: _name(references[model, "validation"]) for model in models}
    parts = {name: _with_references(schema) for name, schema in found["$defs"].items()}
    whole = {mapping: names[mapping[-1]] for mapping in mappings}
    joined = {name: _joined([parts[names[model]] for model in mapping]) for mapping, name in whole.items()}
    shared = {names[model] for mapping in mappings for model in mapping[:-1]} - joined.keys()
    return whole, {name: joined.get(name, schema) for name, schema in parts.items() if name not in shared}


def _joined(schemas: list[Schema]) -> Schema:
    """One mapping with the keys of several models; the last one's words describe it."""
    found = dict(schemas[-1])
    found["properties"] = {name: item for schema in schemas for name, item in schema.get("properties", {}).items()}
    required = [name for schema in schemas for name in schema.get("required", ())]
    return found | ({"required": required} if required else {})


def _name(reference: Schema) -> str:
    return str(reference["$ref"]).rpartition("/")[2]


def _with_references(schema: Schema) -> Schema:
    """The schema with a `${...}` allowed for each number, boolean and word, and a string for the first two."""
    found: Schema = {}
    for key, value in schema.items():
        if key == "properties":
            found[key] = {name: _with_references(item) for name, item in value.items()}
        elif key in ("anyOf", "prefixItems"):
            found[key] = [_with_references(item) for item in value]
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            found[key] = _with_references(value)
        else:
            found[key] = value
    if found.get("format") == "path":
        found = {key: value for key, value in found.items() if key != "format"} | {"type": _STRING}
    if found.get("type") in ("integer", "number", "boolean") or "enum" in found:
        value = {key: item for key, item in found.items() if key not in _ABOUT}
        about: Schema = {key: item for key, item in found.items() if key in _ABOUT}
        return {"anyOf": [value, _STRINGS.get(str(found.get("type")), _REFERENCE_PATH)], **about}
    if "anyOf" in found:
        found["anyOf"] = list(_flat(found["anyOf"]))
    return found


def _flat(members: list[Schema]) -> Iterator[Schema]:
    """The members, each once, with nested choices written out."""
    seen: list[Schema] = []
    for member in members:
        for one in member["anyOf"] if set(member) == {"anyOf"} else [member]:
            if one not in seen:
                seen.append(one)
                yield one


def json_schema(components: Components) -> Schema:
    """The JSON Schema of a whole file."""
    sections = {
        "receivers": (components.receivers, "What takes webhooks in, by id."),
        "exporters": (components.exporters, "Where log records go, by id."),
        "extensions": (components.extensions, "What the service has apart from its pipelines, by id."),
    }
    mappings = {
        kind: {type_: components.models(kind, type_) for type_ in table} for kind, (table, _) in sections.items()
    }
    telemetry: Models = (components.telemetry,)
    every = [models for table in mappings.values() for models in table.values()]
    names, definitions = _definitions(list(dict.fromkeys([*every, telemetry])))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "statsig-otel",
        "description": "A configuration of statsig-otel, in the grammar of the OpenTelemetry Collector.",
        "type": "object",
        "required": ["receivers", "exporters", "service"],
        "additionalProperties": False,
        "properties": {
            **{
                kind: _section(
                    mappings[kind], text, names, definitions, components.aliases, may_be_empty=kind == "extensions"
                )
                for kind, (_, text) in sections.items()
            },
            "service": _service(f"#/$defs/{names[telemetry]}"),
            "processors": _NOTHING,
            "connectors": _NOTHING,
        },
        "$defs": {
            "reference": {
                **_REFERENCE,
                "description": "A string with ${env:NAME}, ${env:NAME:-default} or ${file:PATH}.",
            },
            **{f"{name}_string": schema for name, schema in _AS_STRING.items()},
            **definitions,
        },
    }


def _section(
    table: Mapping[str, Models],
    description: str,
    names: Mapping[Models, str],
    definitions: Mapping[str, Schema],
    aliases: Mapping[str, str],
    *,
    may_be_empty: bool,
) -> Schema:
    bodies: dict[str, Schema] = {}
    for type_, models in table.items():
        bodies[type_] = {"$ref": f"#/$defs/{names[models]}"}
        if not definitions[names[models]].get("required"):  # then the id alone is enough
            bodies[type_] = {"anyOf": [bodies[type_], {"type": "null"}]}
    for alias, type_ in aliases.items():
        if type_ in table:
            bodies[alias] = {**bodies[type_], "deprecated": True, "description": f"The older name of {type_}."}
    return {
        "description": description,
        "type": ["object", "null"] if may_be_empty else "object",
        "additionalProperties": False,
        "properties": bodies,  # for completion; the patterns below would do for checking
        "patternProperties": {f"^{type_}/.+$": body for type_, body in bodies.items()},
    }


def _service(telemetry: str) -> Schema:
    ids = {"type": "array", "items": _ID, "minItems": 1}
    pipeline = {
        "type": "object",
        "required": ["receivers", "exporters"],
        "additionalProperties": False,
        "properties": {
            "receivers": {**ids, "description": "The receivers whose records come in."},
            "exporters": {**ids, "description": "The exporters that get each record."},
            "processors": _NOTHING,
        },
    }
    return {
        "description": "What runs.",
        "type": "object",
        "required": ["pipelines"],
        "additionalProperties": False,
        "properties": {
            "extensions": {"type": ["array", "null"], "items": _ID, "description": "The extensions to start."},
            "pipelines": {
                "description": "Which receivers feed which exporters, by id: logs or logs/NAME.",
                "type": "object",
                "minProperties": 1,
                "additionalProperties": False,
                "properties": {"logs": pipeline},
                "patternProperties": {"^logs/.+$": pipeline},
            },
            "telemetry": {"anyOf": [{"$ref": telemetry}, {"type": "null"}]},
        },
    }


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a component.

    Attributes:
        path: Its path below the component: `tls::insecure`.
        type: What may be written, in words.
        default: Its default, as it would be written.
    """

    path: str
    type: str
    default: Any
    is_required: bool
    meaning: str


def keys(*models: type[Settings]) -> list[Key]:
    """The keys of a mapping that models read, with those of the models in them below them, in their order."""
    names, definitions = _definitions([models])
    return list(_keys(names[models], definitions, ""))


def _keys(model: str, definitions: Mapping[str, Schema], above: str) -> Iterator[Key]:
    definition = definitions[model]
    for name, schema in definition.get("properties", {}).items():
        if schema.get("deprecated"):
            continue  # it changes nothing
        path = f"{above}{name}"
        models = [_name(one) for one in _choices(schema) if "$ref" in one and one not in _OTHER_FORMS]
        is_mapping = bool(models)
        if not is_mapping and "$ref" in schema.get("items", {}):  # a list of mappings, and nothing else
            models = [_name(schema["items"])]
        yield Key(
            path,
            "mapping" if is_mapping else _type(schema),
            schema.get("default"),
            name in definition.get("required", ()),
            schema.get("description", ""),
        )
        for inner in models:
            yield from _keys(inner, definitions, f"{path}::")


def _choices(schema: Schema) -> list[Schema]:
    members: list[Schema] = schema.get("anyOf", [schema])
    return members


_MOST_WORDS: Final = 3
_WORDS: Final = {"integer": "whole number", "number": "number", "boolean": "true or false", "object": "mapping"}


def _type(schema: Schema) -> str:
    members = [one for one in _choices(schema) if not _is_other_form(one)]
    words = list(dict.fromkeys(map(_word, members)))
    return " or ".join(words) if 0 < len(words) <= _MOST_WORDS else "value"


def _is_other_form(schema: Schema) -> bool:
    """Whether the schema is only another way to write the same value."""
    is_spelling = schema.get("type") == "string" and "title" not in schema  # a string has all of `_STRING`
    return schema in _OTHER_FORMS or schema.get("type") == "null" or is_spelling


def _word(schema: Schema) -> str:
    if "title" in schema:
        return str(schema["title"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"] if isinstance(value, str))
    if schema.get("type") == "array":
        return f"list of {_plural(_type(schema['items']))}" if "items" in schema else "list"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"mapping of {_plural(_type(schema['additionalProperties']))}"
    if "$ref" in schema:
        return "mapping"
    return "string" if schema.get("type") == _STRING else _WORDS.get(str(schema.get("type")), "anything")


def _plural(word: str) -> str:
    return f"{word}s" if word.isalpha() else word
