"""Exporters that need no backend: to a file, to the terminal, and to an embedding program's LoggerProvider."""
