"""Reads and checks the configuration. Each component passes in the model of its settings.

The public names, each loaded when it is first used:

- Everyday: `ConfigError`, with a `Problem` for each mistake.
- Extending: `Settings`, `Opaque`, `Duration`, `Size` and `SettingError`, for the settings of an exporter of your own.

The modules below are private, though `help` lists them: import from this package.
"""

from typing import TYPE_CHECKING

from statsig_otel._lazy import exports

if TYPE_CHECKING:
    from statsig_otel.config.errors import ConfigError as ConfigError
    from statsig_otel.config.errors import Problem as Problem
    from statsig_otel.config.errors import SettingError as SettingError
    from statsig_otel.config.model import Settings as Settings
    from statsig_otel.config.opaque import Opaque as Opaque
    from statsig_otel.config.units import Duration as Duration
    from statsig_otel.config.units import Size as Size
else:  # type checkers would accept any name of a module with __getattr__
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "errors": "ConfigError Problem SettingError",
            "model": "Settings",
            "opaque": "Opaque",
            "units": "Duration Size",
        },
    )
