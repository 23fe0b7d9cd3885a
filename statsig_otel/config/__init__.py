"""What the user writes, read and checked. Floor 1: knows the grammar; the components' models are handed to it."""

from typing import TYPE_CHECKING

from statsig_otel._lazy import exports

if TYPE_CHECKING:
    from statsig_otel.config.errors import ConfigError, Problem
    from statsig_otel.config.grammar import Components, Configuration, Pipeline, check, load
    from statsig_otel.config.locations import read_all
    from statsig_otel.config.merging import merge
    from statsig_otel.config.model import Duration, Opaque, Settings, Size
    from statsig_otel.config.source import Document, Place, parse, read

__all__ = [
    "Components",
    "ConfigError",
    "Configuration",
    "Document",
    "Duration",
    "Opaque",
    "Pipeline",
    "Place",
    "Problem",
    "Settings",
    "Size",
    "check",
    "load",
    "merge",
    "parse",
    "read",
    "read_all",
]

__getattr__, __dir__ = exports(
    __name__,
    {
        "Components": "grammar",
        "ConfigError": "errors",
        "Configuration": "grammar",
        "Document": "source",
        "Duration": "model",
        "Opaque": "model",
        "Pipeline": "grammar",
        "Place": "source",
        "Problem": "errors",
        "Settings": "model",
        "Size": "model",
        "check": "grammar",
        "load": "grammar",
        "merge": "merging",
        "parse": "source",
        "read": "source",
        "read_all": "locations",
    },
)
