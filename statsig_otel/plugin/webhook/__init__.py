"""Verifies the signature of a webhook and splits its body into items. Pure functions, without I/O."""

from typing import Final

DEFAULT_PATH: Final = "/api/v1/data/events/receiver/statsig"
"""Where the webhook is received unless a receiver says otherwise: Chronosphere's path for it, so that moving from there
means changing the host."""
