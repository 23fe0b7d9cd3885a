"""Destinations that need no backend: a file, the terminal, and an embedding program's LoggerProvider."""
