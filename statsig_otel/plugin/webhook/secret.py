"""Finds mistakes in a signing secret by its characters."""

from typing import Final

from statsig_otel.config.errors import Fault

PREFIX: Final = "webhook-"
"""How Statsig's signing secrets begin. It is a part of the secret."""

SECRETS_SETTING: Final = "signing_secrets (without a file: STATSIG_SIGNING_SECRET)"
"""Where secrets are set, for messages that are written where nobody knows whether there is a configuration file."""

THEN_RELOAD: Final = "Then run `statsig-otel reload`, or without a file start again."
"""How a secret that was set becomes active, likewise."""

_SHORTEST: Final = len(PREFIX) + 6
"""Characters. Statsig's secrets have about 50. A few behind the prefix, as a test may have them, can be guessed."""

_QUOTES: Final = frozenset("\"'`\u2018\u2019\u201c\u201d")
_COPY_ALONE: Final = "copy the secret alone, from webhook- to its last letter"
NO_QUOTES: Final = "leave the quotation marks out: docker's --env-file, for example, makes them a part of the value"
"""The hint for quotation marks around a value."""


def is_in_quotes(text: str) -> bool:
    """Whether a string begins or ends with a quotation mark."""
    return not _QUOTES.isdisjoint({text[:1], text[-1:]})


def fault_of_reference(secret: str) -> Fault | None:
    """The fault of a string that would be a reference in a file; None for any other. No secret contains `${`."""
    if "${" not in secret:
        return None
    return Fault("contains ${, which no signing secret contains", "give the secret itself, not a reference to it")


def fault_of_secret(secret: str) -> Fault | None:
    """Why this can't be a secret; None if it can. It must not be empty."""
    if secret != secret.strip():
        return Fault("begins or ends with white space", _COPY_ALONE)
    if is_in_quotes(secret):
        return Fault("begins or ends with a quotation mark", NO_QUOTES)
    if secret == PREFIX:
        return Fault("is only the beginning that all secrets have", "copy the whole secret")
    if fault := fault_of_reference(secret):
        return fault
    if not secret.isprintable() or secret == "[REDACTED]":  # noqa: S105 - it takes the place of one
        return Fault("contains what no secret has: a byte order mark, a line end, or [REDACTED] itself", _COPY_ALONE)
    return None


def doubt_of_secret(secret: str) -> str | None:
    """Why this is probably not a secret, although it may be one; None if it looks like one, or is empty."""
    if secret and not secret.startswith(PREFIX):
        return f"does not begin with {PREFIX}, as Statsig's secrets do: copy the whole secret"
    if secret == f"{PREFIX}...":
        return "is the placeholder that the documentation shows, and everybody knows it: copy the secret"
    if secret and len(secret) < _SHORTEST:
        return f"has only {len(secret)} characters, and Statsig's secrets have about 50: copy the whole secret"
    return None
