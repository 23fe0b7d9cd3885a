"""The settings of receivers, exporters, storage and telemetry that a user may write."""

from typing import Final

SECRET_VARIABLE: Final = "STATSIG_SIGNING_SECRET"  # noqa: S105 - the variable's name
"""The environment variable with the signing secret."""
