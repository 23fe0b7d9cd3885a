"""Invalid items where no queue keeps them: the log is the only place left."""

import logging
from typing import Final

from statsig_otel.exporters.consumer import Batch
from statsig_otel.exporters.terminal import printable

_MAX_LOGGED: Final = 10
"""Invalid items of a batch that go into the log."""

_MAX_LOGGED_TEXT: Final = 2048


def log_invalid(logger: logging.Logger, batch: Batch, *, hidden: bool) -> None:
    """Log the invalid items of a batch, a bounded number of them and a bounded part of each.

    Args:
        logger: Where to.
        batch: The batch.
        hidden: Whether the texts may hold what must not be shown: then only their size is told.
    """
    for invalid in batch.invalid[:_MAX_LOGGED]:
        text = "its text is not shown"
        if not hidden:
            # In this order: escaping may lengthen it, and one of 20 MiB is not worth it.
            text = invalid.text[:_MAX_LOGGED_TEXT].decode(errors="backslashreplace")
            text = printable(text)[:_MAX_LOGGED_TEXT]
        kind = "body" if invalid.whole_body else "item"
        message = "%s: an invalid %s of %d bytes is in no queue, only here: %s: %s"
        logger.warning(message, batch.receiver, kind, len(invalid.text), printable(invalid.reason), text)
    if (more := len(batch.invalid) - _MAX_LOGGED) > 0:
        logger.warning("%s: and %d more invalid items in the same request", batch.receiver, more)
