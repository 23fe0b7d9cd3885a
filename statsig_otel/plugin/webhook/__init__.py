"""Is a webhook from Statsig, and what does it contain? Pure functions, without I/O."""
