"""Reads the resource of the records from the environment variables of OpenTelemetry's SDKs."""

import logging
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import unquote

from statsig_otel.config.errors import Problem
from statsig_otel.plugin.record.change_event import valid
from statsig_otel.plugin.record.serializer import AttributeValue

UNRESOLVED: Final = "contains ${, with which a reference begins: nothing resolves it"
"""What is wrong with a value that a program passes, and that would be a reference in a file."""

_logger: Final = logging.getLogger(__name__)


def resource_from_environment(environ: Mapping[str, str]) -> dict[str, AttributeValue]:
    """The attributes of `OTEL_RESOURCE_ATTRIBUTES`, with `OTEL_SERVICE_NAME` over them.

    Entries that are not pairs are left out with a warning, as in the SDK. Bytes that are not UTF-8, plain or
    percent-encoded, become U+FFFD.
    """
    attributes, broken = pairs(environ.get("OTEL_RESOURCE_ATTRIBUTES", ""))
    if broken:
        _logger.warning("OTEL_RESOURCE_ATTRIBUTES: %d of its entries are not key=value and are left out", broken)
    name = environ.get("OTEL_SERVICE_NAME")
    return {**attributes, **({"service.name": valid(name)} if name else {})}


def misshapen_variables(environ: object) -> Iterator[Problem]:
    """What is wrong with variables that a program passes, so that they can't be read."""
    if not isinstance(environ, Mapping):
        yield Problem(("environ",), "must be a mapping", "give os.environ, or {} for no variables")
    for name, value in environ.items() if isinstance(environ, Mapping) else ():
        if not (isinstance(name, str) and isinstance(value, str)):
            yield Problem(("environ", str(name)), "must be a string")


def references_in_variables(environ: Mapping[str, str]) -> Iterator[Problem]:
    """A problem for each variable of the resource that contains a reference, which nothing resolved."""
    for name in ("OTEL_RESOURCE_ATTRIBUTES", "OTEL_SERVICE_NAME"):
        if "${" in environ.get(name, ""):
            hint = "set the value itself; in OTEL_RESOURCE_ATTRIBUTES, %24{ stands for ${"
            yield Problem(("environ", name), UNRESOLVED, hint)


def pairs(text: str) -> tuple[dict[str, str], int]:
    """The pairs of `key=value,key=value`, values percent-decoded, and how many entries are not a pair."""
    found: dict[str, str] = {}
    broken = 0
    for entry in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = entry.partition("=")
        if equals and key.strip():
            found[valid(unquote(key.strip()))] = valid(unquote(value.strip()))
        else:
            broken += 1
    return found, broken
