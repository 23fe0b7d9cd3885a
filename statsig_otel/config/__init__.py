"""Reads and checks the configuration. Floor 1: the components' models are an argument."""

from typing import TYPE_CHECKING

from statsig_otel._lazy import exports

if TYPE_CHECKING:
    from statsig_otel.config.configuration import Components as Components
    from statsig_otel.config.configuration import Configuration as Configuration
    from statsig_otel.config.configuration import Pipeline as Pipeline
    from statsig_otel.config.errors import ConfigError as ConfigError
    from statsig_otel.config.errors import Problem as Problem
    from statsig_otel.config.errors import SettingError as SettingError
    from statsig_otel.config.grammar import check as check
    from statsig_otel.config.grammar import load as load
    from statsig_otel.config.locations import read_all as read_all
    from statsig_otel.config.merging import merge as merge
    from statsig_otel.config.model import Opaque as Opaque
    from statsig_otel.config.model import Settings as Settings
    from statsig_otel.config.source import Document as Document
    from statsig_otel.config.source import Place as Place
    from statsig_otel.config.source import parse as parse
    from statsig_otel.config.source import read as read
    from statsig_otel.config.units import Duration as Duration
    from statsig_otel.config.units import Size as Size
else:  # type checkers would otherwise accept any name
    __getattr__, __dir__ = exports(
        __name__,
        {
            "Components": "configuration",
            "ConfigError": "errors",
            "Configuration": "configuration",
            "Document": "source",
            "Duration": "units",
            "Opaque": "model",
            "Pipeline": "configuration",
            "Place": "source",
            "Problem": "errors",
            "SettingError": "errors",
            "Settings": "model",
            "Size": "units",
            "check": "grammar",
            "load": "grammar",
            "merge": "merging",
            "parse": "source",
            "read": "source",
            "read_all": "locations",
        },
    )
