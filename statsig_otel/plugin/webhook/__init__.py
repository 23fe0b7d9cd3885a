"""Is a webhook from Statsig, and what does it contain? Pure functions, without I/O."""

from typing import Final

DEFAULT_PATH: Final = "/api/v1/data/events/receiver/statsig"
"""Where the webhook is received unless a receiver says otherwise: Chronosphere's path for it, so that moving from there
means changing the host."""
