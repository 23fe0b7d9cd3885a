"""Resolves plain scalars by YAML 1.2's core schema, in which `on` and `yes` are strings."""

import re
from typing import Final, TypeAlias

Atom: TypeAlias = str | int | float | bool | None

YAML_1_1_BOOLEANS: Final = {"y": "true", "yes": "true", "on": "true", "n": "false", "no": "false", "off": "false"}
"""Strings that many tools still read as booleans, in any case."""

# YAML 1.2.2, section 10.3.2, "Tag Resolution" (of the core schema).
_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT: Final = re.compile(r"[-+]?[0-9]+")
_PREFIXED: Final = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_INFINITY: Final = re.compile(r"([-+]?)\.(?:inf|Inf|INF)")
_NAN: Final = frozenset({".nan", ".NaN", ".NAN"})
_LONGEST_NUMBER: Final = 100  # Python refuses decimals of thousands of digits; no setting needs them


def resolve(text: str) -> Atom:
    """The value of a plain scalar."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if text in _NAN:
        return float("nan")
    if len(text) > _LONGEST_NUMBER:
        return text
    if _INT.fullmatch(text):
        return int(text)
    if _PREFIXED.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    infinity = _INFINITY.fullmatch(text)
    return float(infinity[1] + "inf") if infinity else text
