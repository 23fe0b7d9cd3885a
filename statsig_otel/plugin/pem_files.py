"""Whether files still hold what they held: certificates are renewed under the same name."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from statsig_otel.config.model import Settings


def digest(files: Iterable[Path | None]) -> bytes:
    """A fingerprint of what the files hold now. One that can't be read differs from one that can."""
    found = hashlib.sha256()
    for file in files:
        try:
            content = file.read_bytes() if file else None
        except (OSError, ValueError) as error:
            found.update(f"{type(error).__name__}\n".encode())
            continue
        found.update(b"-\n" if content is None else f"{len(content)}\n".encode() + content)
    return found.digest()


def digests(exporters: Mapping[str, Settings]) -> dict[str, bytes]:
    """The fingerprint of each exporter's files, of those that have any."""
    return {name: digest(settings.own_files) for name, settings in exporters.items() if settings.own_files}
