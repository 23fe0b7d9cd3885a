"""The site that `make site` makes, in a real Chromium: how each page is on a phone, and the search.

`make site` and `make test-browser` install what this needs.
"""

import importlib.util
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest

SITE: Final = Path(__file__).parents[1] / "build" / "site"
CHROMIUM: Final = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING: Final = [
    name
    for name, is_there in {
        "build/site": (SITE / "docs" / "index.html").exists(),
        "Chromium": CHROMIUM is not None,
        "playwright": importlib.util.find_spec("playwright") is not None,
    }.items()
    if not is_there
]
PHONE: Final[Any] = {"width": 390, "height": 844}
PATIENCE: Final = 120_000.0  # milliseconds: the machine may be busy with other tests

TOO_WIDE: Final = """() => {
    // The theme scrolls this part of a page, not the page, if something in it is too wide.
    const content = document.querySelector(".content") ?? document.documentElement;
    if (content.scrollWidth <= content.clientWidth) return [];
    const scrolls = one => ["auto", "scroll", "hidden"].includes(getComputedStyle(one).overflowX);
    const found = [`${content.scrollWidth} pixels`];
    for (const one of content.querySelectorAll("*")) {
        let around = one;
        while (around !== content && !scrolls(around)) around = around.parentElement;
        if (around === content && one.getBoundingClientRect().right > content.clientWidth)
            found.push(one.outerHTML.slice(0, 80));
    }
    return found;
}"""
"""What is wider than the screen and does not scroll by itself."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(MISSING), reason=f"NO SITE IN A BROWSER: {', '.join(MISSING)} is missing"),
]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        """Say nothing."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(SITE)))
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


@pytest.fixture
def page() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright  # type: ignore[import-not-found,unused-ignore]

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(viewport=PHONE, is_mobile=True)
        context.set_default_timeout(PATIENCE)
        yield context.new_page()
        browser.close()


def test_no_page_is_wider_than_a_phone(url: str, page: Any) -> None:
    names = [str(file.relative_to(SITE)) for file in sorted(SITE.rglob("*.html")) if file.parent != SITE]
    assert "docs/comparison.html" in names
    wide = {}
    for name in names:
        page.goto(f"{url}/{name}")
        if found := page.evaluate(TOO_WIDE):
            wide[name] = found
    assert wide == {}


def test_the_search_finds_a_page_by_a_word_in_it(url: str, page: Any) -> None:
    page.goto(f"{url}/search.html?q=watchdog")
    page.wait_for_selector("#search-results a[href*='docs/supervisors.html']")
