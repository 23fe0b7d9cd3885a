"""The HTML of the page: complete without JavaScript, and harmless whatever Statsig, a client or a backend sends."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from statsig_otel._journal import Journal, RequestEntry
from statsig_otel.exporters.delivery.facts import ExporterFacts
from statsig_otel.exporters.queue.dead_letters import StoredDeadLetter
from statsig_otel.plugin import Mapper, parse
from statsig_otel.plugin.watch import page
from statsig_otel.plugin.watch.facts import Facts, ReceiverFacts
from statsig_otel.plugin.watch.history import History
from statsig_otel.plugin.watch.journal_json import entries
from statsig_otel.plugin.watch.page import SECTIONS, Shown

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;\u202e\u2028\x1b[31m\x00 ${7*7} {{7*7}}"
_TAGS = {
    *("html", "head", "meta", "title", "link", "script", "body", "header", "main", "section", "div", "article"),
    *("h1", "h2", "h3", "p", "a", "b", "span", "time", "ol", "li", "dl", "dt", "dd", "pre", "code", "wbr"),
    *("figure", "figcaption", "svg", "line", "rect", "table", "thead", "tbody", "tr", "th", "td"),
    *("details", "summary", "form", "label", "input", "select", "option", "button"),
}
"""The elements of the page: any other one has come from outside."""


class Read(HTMLParser):
    """Reads a page: its elements, their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"an attribute is there twice: {attrs}"
        if tag not in ("meta", "link", "input", "line", "rect", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag, f"{tag} is closed out of order"

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def shown(outside: str, **others: Any) -> Shown:
    """A page on which everything that can come from outside is this text."""
    text = outside
    change = {
        "eventName": "statsig::config_change",
        "timestamp": 1739400185198,
        "user": {"name": text},
        "metadata": {
            "type": text or "Gate",
            "name": text or "a",
            "action": text,
            "description": f"{text}\n{text}",
            "environments": [text],
        },
    }
    journal = Journal()
    journal.keep()
    body = json.dumps([change]).encode()
    journal.add_changes(text, 1, Mapper().map(parse(body), 1).changes)
    journal.add_request(text, 503, text, text)
    journal.add_request("statsig", 200, "accepted", "", {"accepted": 1, "ignored": 2})
    journal.add_attempt(text, "blocked", text, records=1, delivered=0, seconds=0.1)
    facts = Facts(
        now=1_800_000_000.0,
        reasons={"storage_failed": text},
        receivers=[ReceiverFacts(name=text, path=f"/{text}", last_verified=1.0, ignored={text: 2, "other": 1})],
        exporters=[ExporterFacts(name=text, state="blocked", waiting=1, oldest=3.0, last_error=text)],
        dead_letters=2,
        requests=journal.requests(),
    )
    history = History(lambda: (1.0, 2.0, 3.0, 4.0))
    dead = [StoredDeadLetter(7, 1, "item", text, text, 0, None, 1, 3)]
    return Shown(
        facts=facts, entries=entries(journal), minutes=history.minutes(), dead_letters=dead, token=text, **others
    )


def check(html: str) -> Read:
    read = Read(html)
    assert read.open == []
    assert {tag for tag, _ in read.tags} <= _TAGS
    for tag, attributes in read.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        for name in ("href", "src", "action"):
            link = attributes.get(name)
            assert link is None or link == "data:," or (link.startswith("/") and not link.startswith("//")), link
        if tag == "script":
            assert attributes == {"src": "/page.js", "defer": None}
    assert all(character.isprintable() or character == "\n" for character in html)
    return read


def test_hostile_text_is_shown_and_does_nothing() -> None:
    hostile = shown(HOSTILE, text=HOSTILE, type=HOSTILE)
    read = check(page.page(hostile))
    (change,) = hostile.entries["changes"]
    check(page.record_page(change, [{"a": HOSTILE}]))
    check(page.dead_letter_page({"id": 7, "reason": HOSTILE}, HOSTILE))
    check(page.message_page(HOSTILE, HOSTILE))
    check(page.confirm_page("7", HOSTILE))
    text = "".join(read.text)
    assert "<script>alert(1)</script>" in text
    assert "\\u202e" in text
    # A table has it whole, so that it can be recognised.
    assert "${7*7} {{7*7}}" in text


@settings(max_examples=20)
@given(st.text(max_size=60))
def test_no_text_breaks_the_page(text: str) -> None:
    made = shown(text.encode(errors="replace").decode())
    check(page.page(made))
    for html in page.sections(made).values():
        check(html)


def test_the_page_is_complete_without_javascript() -> None:
    read = check(page.page(shown("layout_v2")))
    ids = {attributes.get("id") for _, attributes in read.tags}
    assert set(SECTIONS) <= ids
    forms = [attributes for tag, attributes in read.tags if tag == "form"]
    assert {(one["method"], one["action"]) for one in forms} == {
        ("get", "/#changes-heading"),
        ("post", "/exporters"),
        ("post", "/dead-letters"),
    }
    tokens = [one for tag, one in read.tags if tag == "input" and one.get("name") == "token"]
    assert {one["value"] for one in tokens} == {"layout_v2"}
    links = [attributes["href"] for tag, attributes in read.tags if tag == "a"]
    assert "/dead-letter?id=7" in links
    assert any(str(link).startswith("/change?uid=") for link in links)


def test_the_filter_works_without_javascript() -> None:
    def rows(**given: str) -> int:
        return page.sections(shown("layout_v2", **given))["changes"].count("<tr data-key")

    assert (rows(), rows(text="LAYOUT"), rows(text="elsewhere")) == (1, 1, 0)
    assert (rows(type="layout_v2_layout_v2"), rows(type="gate_created")) == (1, 0)
    assert "No change matches the filter." in page.sections(shown("a", text="elsewhere"))["changes"]


def test_a_record_that_is_too_large_to_keep_says_so() -> None:
    html = page.record_page({"uid": "0" * 32, "bytes": 6_000_000}, [])
    assert "6000000 bytes, which is too much to keep" in html


def test_long_texts_are_cut_in_cells_and_whole_in_the_record() -> None:
    long = "long_" * 10_000
    found = shown(long)
    assert len(page.sections(found)["changes"]) < 5_000
    assert f"{long[:300]}…" in page.sections(found)["changes"]
    assert long in page.record_page(found.entries["changes"][0], [{"flag": long}])


def test_what_was_sent_together_is_counted() -> None:
    found = shown("a")
    found.entries["requests"][0]["count"] = 12  # type: ignore[index]
    assert "(12 times)" in page.sections(found)["requests"]


def test_a_row_of_a_refusal_is_short_and_what_to_check_opens_below_it() -> None:
    found = shown("a")
    entry = next(one for one in found.entries["requests"] if one["status"] == 503)
    entry["status"] = 400  # type: ignore[index]
    assert "<details" not in page.sections(found)["requests"]
    entry["status"], entry["reason"] = 503, "queue_full"  # type: ignore[index]
    rows = page.sections(found)["requests"]
    assert "<details><summary>Refused: the queue is full.</summary>At that time a. Statsig may" in rows
    assert "Look at the exporters" not in rows, "that was then"
    assert "Statsig may not send such a webhook again" in rows


def test_what_became_of_the_items_of_a_webhook_is_said() -> None:
    found = shown("a")
    entry = next(one for one in found.entries["requests"] if one["reason"] == "accepted")
    assert "Accepted: 1 config change. Ignored: 2 events.<" in page.sections(found)["requests"]
    entry["items"].update(accepted=0, duplicates=2, ignored=0, invalid=1)
    assert "Accepted before: 2 config changes. Invalid: 1 config change.<" in page.sections(found)["requests"]
    entry["items"].clear()
    assert "There was nothing in it.<" in page.sections(found)["requests"]


def test_what_has_not_happened_is_said() -> None:
    journal = Journal()
    journal.keep()
    journal.add_request("", 404, "not_found", "")
    found = replace(shown("a"), entries=entries(journal))
    fresh = ExporterFacts(name="b")
    for exporter, state in ((fresh, "nothing delivered yet"), (replace(fresh, delivered=1), "idle")):
        now = replace(found, facts=replace(found.facts, exporters=[exporter]))
        assert f">{state}<" in page.sections(now)["exporters"]
    assert '<td class="empty" data-name="Receiver"></td>' in page.sections(found)["requests"]
    minutes = [(60, (1.0, 0.0, 0.0, 2.0))]
    chart = page.sections(replace(found, minutes=minutes))["chart"]
    assert chart.count("<svg") == 2
    assert chart.endswith('<p class="quiet">Zero in the last hour: requests refused, config changes.</p>')


def test_what_goes_wrong_in_the_same_way_again_and_again_is_one_row() -> None:
    found = shown("a")
    entry = {"receiver": "", "status": 404, "reason": "not_found", "detail": "", "items": {}, "port": 81, "path": ""}
    requests: list[dict[str, Any]] = [
        {**entry, "at": "2027-01-15T08:00:09Z", "count": 2},
        {**entry, "at": "2027-01-15T08:00:07Z", "count": 3},
        {**entry, "at": "2027-01-15T08:00:06Z", "count": 1, "port": 82},
        {**entry, "at": "2027-01-15T08:00:05Z", "count": 1},
        *({**entry, "at": f"2027-01-15T08:00:0{second}Z", "count": 1, "status": 200} for second in (4, 3)),
    ]
    away = {"exporter": "b", "outcome": "retry_later", "records": 5, "delivered": 0, "seconds": 0.1, "reason": "503"}
    attempts = [{**away, "at": f"2027-01-15T08:00:0{second}Z", "count": 1} for second in (9, 7)]
    made = page.sections(replace(found, entries={**found.entries, "requests": requests, "attempts": attempts}))
    rows = re.findall("<tr data-key.*?</tr>", made["requests"])
    assert len(rows) == 5
    requests[1].update(detail="the receiver's path is /hook", path="/.env")
    other = page.sections(replace(found, entries={**found.entries, "requests": requests}))["requests"]
    assert other.count("<tr data-key") == 6, "another path may be that of a stranger"
    assert "<summary>Refused: wrong path: a request came to /.env.</summary>" in other
    assert "08:00:07</time> – <time" in rows[0]
    assert '>08:00:09</time></td><td data-name="Receiver">port 81</td><td data-name="Answer">404 (5 times)<' in rows[0]
    requests[0]["last"] = "2027-01-15T08:00:10Z"
    until = page.sections(replace(found, entries={**found.entries, "requests": requests}))["requests"]
    assert ">08:00:10</time></td>" in until, "as what to check says"
    (row,) = re.findall("<tr data-key.*?</tr>", made["attempts"])
    assert "retry later (2 times)" in row
    assert ">0 of 5<" in row, "each time they were the same"


def test_what_to_enter_in_statsigs_console_is_shown_until_a_webhook_comes() -> None:
    def told(**changed: object) -> str:
        receiver = ReceiverFacts(name="statsig", path="/hook", **changed)  # type: ignore[arg-type]
        return page.sections(replace(shown("a"), facts=Facts(now=9.0, receivers=[receiver])))["steps"]

    for local in (
        "http://127.0.0.1:8080/hook",
        "http://localhost:8080/hook",
        "https://0.0.0.0/hook",
        "http://[::]/hook",
    ):
        said = told(url=local)
        assert "<code>https://YOUR-HOST/hook</code>" in said
        assert f"has to reach: <code>{local}</code>" in said
    said = told(url="https://hooks.example.com/hook")
    assert "<code>https://hooks.example.com/hook</code>" in said
    assert "has to reach" not in said
    assert "<code>" not in told(url="http://127.0.0.1/hook", last_verified=1.0)
    assert "<code>" not in told(url="http://127.0.0.1/hook", answers={"url_verification": 1})
    assert "<code>" not in told()


def test_where_an_exporter_sends_to_is_in_its_row() -> None:
    exporter = ExporterFacts(name="otlp_grpc", destination="collector:4317")
    found = replace(shown("a"), facts=Facts(now=9.0, exporters=[exporter]))
    assert ">collector:<wbr>4317</span>" in page.sections(found)["exporters"]


def test_the_sign_of_the_state_is_what_is_worst() -> None:
    receiver = ReceiverFacts(name="statsig", last_verified=1.0, last_change=1.0)
    exporter = ExporterFacts(name="otlp_http", delivered=1)
    well = replace(shown("a"), facts=Facts(now=2.0, receivers=[receiver], exporters=[exporter]))

    def sign(**changed: object) -> str:
        state = page.sections(replace(well, facts=replace(well.facts, **changed)))["state"]  # type: ignore[arg-type]
        return state.partition('<p class="state ')[2].partition('"')[0]

    retrying, blocked = replace(exporter, state="retrying"), replace(exporter, state="blocked")
    assert sign() == "good"
    assert sign(receivers=[ReceiverFacts(name="statsig")]) == "open"
    assert sign(exporters=[retrying]) == "passing"
    assert sign(dead_letters=1) == "passing"
    assert sign(exporters=[retrying, blocked]) == "bad"
    lost = RequestEntry("statsig", 503, "queue_full", "", 0.5, 1, last=0.5, run=1)
    assert sign(requests=[lost]) == "bad", "though a webhook was accepted since"
    assert sign(reasons={"disk_full": "the disk is full"}) == "bad"
    assert sign(receivers=[ReceiverFacts(name="statsig", last_verified=1.0, last_accepted=1.0)]) == "passing"


def test_times_of_another_day_have_their_date() -> None:
    found = shown("a")
    (entry, *_) = found.entries["attempts"]
    entry["at"] = "2027-01-15T08:00:01Z"  # type: ignore[index]
    assert ">08:00:01</time>" in page.sections(found)["attempts"]
    entry["at"] = "2027-01-14T08:00:01Z"  # type: ignore[index]
    assert ">Jan 14, 08:00:01</time>" in page.sections(found)["attempts"]


def test_what_no_webhook_brought_is_a_row_that_says_so() -> None:
    found = shown("a")
    (change,) = found.entries["changes"]
    plain = page.sections(found)["changes"]
    change["note"] = "filled in"  # type: ignore[index]
    assert page.sections(found)["changes"] == plain.replace('"long">a</span>', '"long">a, filled in</span>', 1)
    change["note"] = "missed"  # type: ignore[index]
    missed = page.sections(found)["changes"]
    assert ("a, missed" in missed, 'class="bad"' in missed, 'class="bad"' in plain) == (True, True, False)


def test_an_idle_service_has_a_page_too() -> None:
    history = History(lambda: (0.0,) * 4)
    empty = Shown(
        facts=Facts(now=1.0), entries={"requests": [], "changes": [], "attempts": []}, minutes=history.minutes()
    )
    read = check(page.page(empty))
    assert "Ready. No webhook with a valid signature since the start, 1 second ago." in read.text
    assert "Started 1970-01-01 00:00:00 UTC" in "".join(read.text)
    assert "Nothing has happened in the last hour." in read.text
