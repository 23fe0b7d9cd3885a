"""A running service: assembly, lifecycle, reload."""
