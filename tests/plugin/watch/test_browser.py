"""The live page in a real Chromium: what a person sees and does, by mouse, by keyboard, on a phone, without JavaScript.

`make test-browser` installs what drives it. SCREENSHOTS=docs/images keeps the pictures that the docs show.
"""

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from statsig_otel.plugin import Service
from statsig_otel.plugin.watch import routes
from tests.e2e.service_process import ServiceProcess
from tests.e2e.test_demo import CHANGES, LISTENING, demo
from tests.peers.browser import PATIENCE, chromium, missing
from tests.peers.otlp_servers import HttpAnswer, HttpSink, Received
from tests.plugin.fresh import fresh_process
from tests.plugin.http_client import exchange
from tests.plugin.services import SECRET, address_of, change_body, names_in, page_config, post_change, signed_request
from tests.waiting import wait_until

ROOT: Final = Path(__file__).parents[3]
AXE: Final = ROOT / "build" / "tools" / "node_modules" / "axe-core" / "axe.min.js"
MISSING: Final = missing({"axe-core": AXE.exists()})
HOSTILE: Final = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>\u202e\"'&amp;"
LOOKS: Final[dict[str, dict[str, Any]]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 375, "height": 800}, "has_touch": True, "is_mobile": True},
}
_RULES: Final = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"NO BROWSER: {MISSING} is missing; see make test-browser"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    with fresh_process():
        yield


@contextmanager
def shown(browser: Any, service: Service, **options: Any) -> Iterator[Any]:
    """The page of a service of this process."""
    zpages = service._assembly.zpages
    assert zpages is not None
    with opened(browser, zpages.url, **options) as page:
        yield page


@contextmanager
def opened(browser: Any, url: str, **options: Any) -> Iterator[Any]:
    """A page by its address. Whatever goes wrong in it, and everything that it loads from elsewhere, fails the test."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(f"an error: {error}"))
    page.on("dialog", lambda dialog: wrong.append(f"a dialog: {dialog.message}"))
    page.on("request", lambda sent: None if sent.url.startswith((url, "data:")) else wrong.append(sent.url))
    page.on("console", lambda said: wrong.append(said.text) if "Content Security Policy" in said.text else None)
    try:
        page.goto(url)
        yield page
        assert wrong == []
    finally:
        context.close()


@contextmanager
def running(tmp_path: Path, endpoint: str, *, port: int = 0, **others: Any) -> Iterator[Service]:
    """A service that sends to an endpoint, and shows its page on a port, by default a free one."""
    exporters = {"otlp_http": {"endpoint": endpoint, "compression": "none", **others}}
    path = page_config(tmp_path, exporters, endpoint=f"127.0.0.1:{port}")
    with Service.from_file(path, environ={}) as service:
        yield service


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        return int(unused.getsockname()[1])


def keep(page: Any, name: str) -> None:
    """Keep a picture of the page if somebody wants it."""
    if directory := os.environ.get("SCREENSHOTS"):
        Path(directory).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(directory) / f"{name}.png"), full_page=True)


def row(page: Any, section: str, text: str) -> Any:
    return page.locator(f"#{section} tbody tr", has_text=text).first


def change(name: str, **metadata: Any) -> bytes:
    told = {"type": "Gate", "name": name, "action": "updated", "environments": "production,staging"}
    item = {
        "eventName": "statsig::config_change",
        "timestamp": 1739400185198,
        "user": {"name": "Release Manager", "email": "release@example.com"},
        "metadata": {**told, "description": "- Updated rule\n- 10 % of all users pass", **metadata},
    }
    return json.dumps([item]).encode()


def send(service: Service, body: bytes) -> None:
    assert exchange(address_of(service), signed_request(body)).status == 200


def test_a_change_appears_while_somebody_looks_and_its_record_can_be_copied(browser: Any, tmp_path: Path) -> None:
    with HttpSink() as sink, running(tmp_path, sink.url) as service, shown(browser, service) as page:
        page.get_by_text("No webhook with a valid signature since the start").first.wait_for()
        page.get_by_text("A signed webhook is accepted").wait_for()
        page.locator("#live", has_text="Live").wait_for()
        send(service, change("layout_v2"))
        arrived = row(page, "changes", "layout_v2")
        arrived.get_by_text("Release Manager").wait_for()
        row(page, "attempts", "delivered").wait_for()
        page.locator("#state", has_text="Receiving. Last config change").wait_for()
        page.locator("#steps-heading").wait_for(state="hidden")
        arrived.get_by_role("link", name="Show the record of layout_v2").click()
        dialog = page.get_by_role("dialog", name="layout_v2 updated")
        record = json.loads(dialog.locator("pre").inner_text())
        assert record["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]["body"] == {
            "stringValue": "layout_v2 updated"
        }
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        dialog.get_by_role("button", name="Copy").click()
        dialog.get_by_role("button", name="Copied").wait_for()
        assert json.loads(page.evaluate("navigator.clipboard.readText()")) == record
        dialog.get_by_role("button", name="Close").click()
        dialog.wait_for(state="hidden")


def test_a_forged_request_is_explained(browser: Any, tmp_path: Path) -> None:
    with HttpSink() as sink, running(tmp_path, sink.url) as service, shown(browser, service) as page:
        assert post_change(service, "forged", secret=f"{SECRET}0").status == 401
        page.locator("#troubles h3", has_text="the signature does not match").wait_for()
        assert "Compare signing_secrets" in page.locator("#troubles").inner_text()
        refused = row(page, "requests", "Refused: the signature")
        assert "401" in refused.inner_text()
        assert "Compare" not in refused.inner_text()
        refused.locator("summary").click()
        refused.get_by_text("Compare signing_secrets").wait_for()
        assert page.locator("#changes tbody tr").count() == 0
        # A good one ends it.
        assert post_change(service, "good").status == 200
        page.locator("#troubles h3").wait_for(state="detached")
        row(page, "requests", "Accepted: 1 config change.").wait_for()
        assert "Compare" in refused.inner_text(), "what was opened is closed by what arrives"


def test_a_dead_backend_that_comes_back(browser: Any, tmp_path: Path) -> None:
    port = closed_port()
    with running(tmp_path, f"http://127.0.0.1:{port}") as service, shown(browser, service) as page:
        for number in range(3):
            assert post_change(service, f"waits_{number}").status == 200
        page.locator("#state", has_text="otlp_http is retrying: 3 records wait.").wait_for()
        exporter = row(page, "exporters", "otlp_http")
        assert "Connection refused" in exporter.inner_text()
        with HttpSink(port=port) as sink:
            exporter.get_by_role("button", name="Try now: otlp_http").click()
            page.get_by_role("dialog").get_by_text("which was retrying, tries again at once.").wait_for()
            page.keyboard.press("Escape")
            row(page, "exporters", "idle").wait_for()
            page.locator("#troubles h3").wait_for(state="detached")
            wait_until(lambda: sum(len(names_in(one.payload)) for one in sink.requests) >= 3)


def test_a_dead_letter_is_shown_replayed_and_dropped(browser: Any, tmp_path: Path) -> None:
    refuses = True

    def answer(request: Received) -> HttpAnswer:
        return HttpAnswer(status=400 if refuses and {"bad", "worse"} & set(names_in(request.payload)) else 200)

    with HttpSink() as sink, running(tmp_path, sink.url) as service, shown(browser, service) as page:
        sink.answer = answer
        for name in ("bad", "worse", "good"):
            assert post_change(service, name).status == 200
        page.locator("#dead-letters tbody tr").nth(1).wait_for()
        first = page.locator("#dead-letters tbody tr").first
        first.get_by_role("link", name="Show").click()
        dialog = page.get_by_role("dialog")
        dialog.locator("pre", has_text='"bad"').wait_for()
        page.keyboard.press("Escape")
        refuses = False
        first.get_by_role("button", name="Replay").click()
        dialog.get_by_text("was replayed: 1 record to deliver").wait_for()
        page.keyboard.press("Escape")
        wait_until(lambda: sum("bad" in names_in(one.payload) for one in sink.requests) > 1)
        last = page.locator("#dead-letters tbody tr", has_text="record").last
        page.locator("#dead-letters tbody tr").nth(1).wait_for(state="detached")
        last.get_by_role("button", name="Drop").click()
        dialog.get_by_role("button", name="Drop it for good").click()
        dialog.get_by_text("was deleted").wait_for()
        page.keyboard.press("Escape")
        page.locator("#dead-letters-heading").wait_for(state="hidden")


def test_hostile_names_are_only_text(browser: Any, tmp_path: Path) -> None:
    """A listener of `shown` fails the test for each script, dialog and request that they cause."""
    with HttpSink() as sink, running(tmp_path, sink.url) as service, shown(browser, service) as page:
        body = change(HOSTILE, type=HOSTILE, action=HOSTILE, description=HOSTILE, environments=[HOSTILE])
        send(service, body)
        sink.answer = HttpAnswer(status=401, headers={"Content-Type": "text/plain"}, body=HOSTILE.encode())
        send(service, change("second"))
        arrived = page.locator("#changes tbody tr", has_text="onerror=document.title")
        arrived.first.wait_for()
        assert "\u202e" not in page.content()
        assert page.title() == "statsig-otel"
        assert page.locator("main img, main script").count() == 0
        types = page.locator("#filter-type option").all_inner_texts()
        page.select_option("#filter-type", index=next(at for at, one in enumerate(types) if "<img" in one))
        page.fill("#filter-text", "<img")
        page.locator("#said", has_text="1 of 2 changes match").wait_for()
        arrived.first.get_by_role("link").click()
        page.get_by_role("dialog").locator("pre", has_text="onerror").wait_for()
        assert page.get_by_role("dialog").locator("img, script").count() == 0
        page.reload()
        arrived.first.wait_for()
        assert page.title() == "statsig-otel"


def test_the_filter_hides_what_does_not_match(browser: Any, tmp_path: Path) -> None:
    with HttpSink() as sink, running(tmp_path, sink.url) as service, shown(browser, service) as page:
        for name in ("alpha", "beta"):
            send(service, change(name))
        send(service, change("gamma", type="Experiment"))
        row(page, "changes", "gamma").wait_for()
        page.fill("#filter-text", "ALPHA")
        visible = page.locator("#changes tbody tr:visible")
        assert visible.count() == 1
        send(service, change("alphabet"))
        send(service, change("delta"))
        wait_until(lambda: visible.count() == 2 or page.wait_for_timeout(50))
        page.fill("#filter-text", "")
        page.select_option("#filter-type", "experiment_updated")
        assert visible.count() == 1
        assert "gamma" in visible.first.inner_text()


def test_it_works_with_the_keyboard_alone(browser: Any, tmp_path: Path) -> None:
    with HttpSink() as sink, running(tmp_path, sink.url) as service, shown(browser, service) as page:
        send(service, change("layout_v2"))
        row(page, "changes", "layout_v2").wait_for()
        reached = "Show the record of layout_v2"
        for _ in range(50):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.getAttribute('aria-label')") == reached:
                break
        else:
            pytest.fail("Tab does not reach the record")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Enter")
        page.get_by_role("dialog").wait_for()
        page.keyboard.press("Escape")
        page.get_by_role("dialog").wait_for(state="hidden")
        # What arrives meanwhile does not take the focus away.
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == reached
        send(service, change("another"))
        row(page, "changes", "another").wait_for()
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == reached


def test_it_works_without_javascript(browser: Any, tmp_path: Path) -> None:
    with HttpSink() as sink, running(tmp_path, sink.url) as service:
        send(service, change("layout_v2"))
        send(service, b'[{"eventName": "statsig::config_change", "timestamp": 1, "metadata": {"type": "Gate"}}]')
        with shown(browser, service, java_script_enabled=False) as page:
            page.get_by_label("Text").fill("elsewhere")
            page.get_by_role("button", name="Filter").click()
            page.get_by_text("No change matches the filter.").wait_for()
            page.get_by_role("link", name="Read again").click()
            page.get_by_role("link", name="Show the record of layout_v2").click()
            assert json.loads(page.locator("pre").inner_text())["resourceLogs"]
            page.go_back()
            page.get_by_role("button", name="Drop: dead letter").click()
            page.get_by_role("button", name="Drop it for good").click()
            page.get_by_text("was deleted").wait_for()
            page.get_by_role("link", name="Back").click()
            assert page.locator("#dead-letters tbody tr").count() == 0


def test_a_service_that_ends_is_said_to(browser: Any, tmp_path: Path) -> None:
    with ExitStack() as stack:
        sink = stack.enter_context(HttpSink())
        service = stack.enter_context(running(tmp_path, sink.url))
        page = stack.enter_context(shown(browser, service))
        page.locator("#live", has_text="Live").wait_for()
        service.shutdown()
        page.locator("#live", has_text="The service does not answer").wait_for()


def test_a_service_that_starts_again_is_shown_again(browser: Any, tmp_path: Path) -> None:
    port, away = closed_port(), f"http://127.0.0.1:{closed_port()}"
    with ExitStack() as stack:
        first = stack.enter_context(running(tmp_path, away, port=port))
        page = stack.enter_context(shown(browser, first))
        send(first, change("waits"))
        row(page, "exporters", "retrying").wait_for()
        first.shutdown()
        page.locator("#live", has_text="This is how it was at").wait_for()
        second = stack.enter_context(running(tmp_path, away, port=port))
        page.locator("#live", has_text="Live").wait_for()
        send(second, change("arrives_later"))
        row(page, "changes", "arrives_later").wait_for()
        # The buttons are those of the second service, which does not know the first one's token.
        row(page, "exporters", "retrying").get_by_role("button", name="Try now: otlp_http").click()
        page.get_by_role("dialog").get_by_text("tries again at once.").wait_for()


def test_a_service_that_hangs_is_said_to_although_no_connection_ends(browser: Any, tmp_path: Path) -> None:
    """As after a laptop's sleep, or behind a tunnel that is gone."""
    with ServiceProcess(page_config(tmp_path, {"debug": {}})) as service:
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        page.clock.install()
        page.goto(service.page)
        page.locator("#live", has_text="Live").wait_for()
        os.kill(service.process.pid, signal.SIGSTOP)
        try:
            page.clock.fast_forward("01:00")
            page.locator("#live", has_text="The service does not answer").wait_for()
        finally:
            os.kill(service.process.pid, signal.SIGCONT)
        page.locator("#live", has_text="Live").wait_for()
        page.close()


def test_a_service_to_which_nothing_happens_is_heard(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a page would take it for one that hangs."""
    monkeypatch.setattr(routes, "_PING", 0.01)
    monkeypatch.setattr(routes, "_BETWEEN_EVENTS", 0.01)
    with HttpSink() as sink, running(tmp_path, sink.url) as service, shown(browser, service) as page:
        page.locator("#live", has_text="Live").wait_for()
        page.evaluate("events.addEventListener('ping', () => { window.pinged = true; })")
        wait_until(lambda: page.evaluate("window.pinged") or page.wait_for_timeout(50))


def test_a_page_that_nobody_sees_has_no_connection(browser: Any, tmp_path: Path) -> None:
    """A browser opens six to a service. A seventh page could not be loaded."""
    become = """hidden => {
        Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    with HttpSink() as sink, running(tmp_path, sink.url) as service, shown(browser, service) as page:
        zpages = service._assembly.zpages
        assert zpages is not None
        wait_until(lambda: zpages._page.streams == 1 or page.wait_for_timeout(50))
        page.evaluate(become, True)
        wait_until(lambda: zpages._page.streams == 0 or page.wait_for_timeout(50))
        send(service, change("meanwhile"))
        page.evaluate(become, False)
        row(page, "changes", "meanwhile").wait_for()


def test_a_filter_finds_a_change_that_is_not_listed_any_more(browser: Any, tmp_path: Path) -> None:
    with HttpSink() as sink, running(tmp_path, sink.url) as service:
        for number in range(110):
            send(service, change(f"flag_{number:03}"))
        with shown(browser, service) as page:
            page.get_by_text("And 10 older ones").wait_for()
            page.fill("#filter-text", "flag_000")
            page.locator("#said", has_text="0 of 100 changes match").wait_for()
            page.keyboard.press("Enter")
            row(page, "changes", "flag_000").wait_for()
            # It stays, whatever arrives.
            send(service, change("flag_000_again"))
            row(page, "changes", "flag_000_again").wait_for()
            assert page.locator("#changes tbody tr:visible").count() == 2
            page.fill("#filter-text", "")
            page.keyboard.press("Enter")
            page.get_by_text("And 11 older ones").wait_for()


def test_the_demo_shows_the_page_of_the_pictures(browser: Any, tmp_path: Path) -> None:
    """A pictured page is that of a whole process, as somebody sees it who has followed the README."""
    with demo(tmp_path) as running:
        running.wait_for(LISTENING)
        url = running.output.partition("as a refused request: ")[2].partition("\n")[0]
        for look, options in LOOKS.items():
            with opened(browser, url, **options) as page:
                page.locator("#live", has_text="Live").wait_for()
                page.locator("#state", has_text="Receiving. Last config change").wait_for()
                page.locator("#troubles h3", has_text="Some requests are refused: the signature does not").wait_for()
                assert page.locator("#troubles h3").count() == 1, "besides the forged webhook something is wrong"
                assert page.locator("#changes tbody tr").count() == CHANGES
                keep(page, f"page-{look}")


@pytest.mark.parametrize("look", LOOKS)
def test_everybody_can_read_it(browser: Any, tmp_path: Path, look: str) -> None:
    """axe finds nothing on a page that shows everything, nor in its dialog, in light and dark and on a phone."""
    options = {**LOOKS[look], "bypass_csp": True}
    with running(tmp_path, f"http://127.0.0.1:{closed_port()}") as service:
        send(service, change("layout_v2"))
        send(service, change("checkout_button", type="Experiment", action="started"))
        send(service, b'[{"eventName": "statsig::config_change", "timestamp": 1, "metadata": {"type": "Gate"}}]')
        assert exchange(address_of(service), signed_request(change_body("x"), "/elsewhere")).status == 404
        assert post_change(service, "forged", secret=f"{SECRET}0").status == 401
        with shown(browser, service, **options) as page:
            row(page, "exporters", "retrying").wait_for()
            row(page, "dead-letters", "metadata.name").wait_for()
            page.locator("#live", has_text="Live").wait_for()
            for text in ("a_name_" * 30, "x" * 500, "ميزة جديدة " * 50):
                send(service, change(text, type=text, action=text, environments=[text] * 9, description=text * 9))
                row(page, "changes", text[:100]).wait_for()
            assert violations(page) == []
            width = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
            assert width[0] <= width[1], "the page has to be moved sideways"
            tallest = page.evaluate("Math.max(...[...document.querySelectorAll('tr')].map(one => one.offsetHeight))")
            assert look == "phone" or tallest < 150, "one row takes the whole page"
            row(page, "changes", "layout_v2").get_by_role("link").click()
            page.get_by_role("dialog").wait_for()
            assert violations(page) == []


def violations(page: Any) -> list[str]:
    page.evaluate(AXE.read_text(encoding="utf-8"))
    run = "rules => axe.run(document, {runOnly: {type: 'tag', values: rules}})"
    found = page.evaluate(run, _RULES)
    assert len(found["passes"]) > 15, "axe has looked at next to nothing"
    return [f"{one['id']}: {one['help']}: {[node['html'] for node in one['nodes']][:3]}" for one in found["violations"]]
