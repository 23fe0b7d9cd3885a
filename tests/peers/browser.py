"""The system's Chromium (Debian: chromium), driven by playwright, which `make browser` installs."""

import importlib.util
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

CHROMIUM: Final = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE: Final = 120_000.0
"""Milliseconds for each step in a page: the machine may be busy with other tests."""


def missing(others: Mapping[str, bool]) -> str:
    """What is missing here, for a sentence: of the browser, and of what else a test needs."""
    there = {"Chromium": CHROMIUM, "playwright": importlib.util.find_spec("playwright"), **others}
    return ", ".join(name for name, found in there.items() if not found)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser for the time of the block."""
    from playwright.sync_api import sync_playwright  # type: ignore[import-not-found,unused-ignore]

    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]) as browser,
    ):
        yield browser
