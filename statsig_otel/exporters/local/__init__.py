"""The exporters that need no backend: a file, the terminal, the LoggerProvider of the embedding program."""
