"""Statsig config changes as OpenTelemetry events.

`Service`, which is `statsig_otel.plugin.Service`, is all that most programs need. Three packages have the rest:

- `statsig_otel.plugin`: from a webhook to a stored record; the service and the command line.
- `statsig_otel.exporters`: from a stored record to a backend.
- `statsig_otel.config`: the errors of a configuration, and the base of settings of your own.

All other modules are private, though `help` lists them: import from these four packages.
"""

from typing import TYPE_CHECKING

from statsig_otel._lazy import exports

if TYPE_CHECKING:
    from statsig_otel.plugin.service.service import Service as Service
else:  # type checkers would accept any name of a module with __getattr__
    __getattr__, __dir__, __all__ = exports(__name__, {"plugin.service.service": "Service"})
    __all__ += ["__version__"]

__version__ = "0.1.0"
