"""The site that `make site` makes, in a real Chromium: how each page is on a phone, and the search.

`make site` and `make test-browser` install what this needs.
"""

from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any, Final

import pytest

from tests.peers.browser import PATIENCE, chromium, missing
from tests.peers.http_server import LocalServer

SITE: Final = Path(__file__).parents[1] / "build" / "site"
MISSING: Final = missing({"build/site": (SITE / "docs" / "index.html").exists()})
PHONE: Final[Any] = {"width": 390, "height": 844}

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
    pytest.mark.skipif(bool(MISSING), reason=f"NO SITE IN A BROWSER: {MISSING} is missing"),
]


class _Files(SimpleHTTPRequestHandler):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments, directory=str(SITE))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with LocalServer(_Files) as server:
        yield server.origin


@pytest.fixture
def page() -> Iterator[Any]:
    with chromium() as browser:
        context = browser.new_context(viewport=PHONE, is_mobile=True)
        context.set_default_timeout(PATIENCE)
        yield context.new_page()


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
