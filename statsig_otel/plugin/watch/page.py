"""Writes the live page as HTML: a complete page without JavaScript, whose sections the script replaces as they change.

Everything that comes from outside goes through `_text`. Each row has a key, by which the script finds what has changed.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any, Final
from urllib.parse import quote

from statsig_otel._telemetry import FAILED_STATES
from statsig_otel.exporters.delivery.facts import ExporterFacts
from statsig_otel.exporters.queue.dead_letters import StoredDeadLetter
from statsig_otel.exporters.terminal import printable
from statsig_otel.exporters.wording import age, counted
from statsig_otel.plugin.watch.chart import chart
from statsig_otel.plugin.watch.diagnosis import Trouble, sentences, troubles
from statsig_otel.plugin.watch.facts import Facts, ReceiverFacts
from statsig_otel.plugin.watch.reasons import check, why
from statsig_otel.plugin.watch.steps import steps

_MOST_CHANGES: Final = 100
_MOST_ROWS: Final = 40
_LONGEST: Final = 300
"""The most characters of a cell."""

_TIME: Final = "Time (UTC)"
_SIGN: Final = re.compile(r"([_/.:-])(?=\w)")
_NEEDS_SOMEBODY: Final = ("refused", "blocked")
_LOCAL: Final = re.compile(r"\w+://(localhost|127\.|0\.0\.0\.0|\[::1?\])")
_FINE: Final = (200, "delivered")

SECTIONS: Final[Mapping[str, str]] = {
    "state": "State",
    "troubles": "What to check",
    "steps": "Set-up",
    "chart": "The last hour",
    "exporters": "Exporters",
    "dead-letters": "Dead letters",
    "changes": "Config changes",
    "requests": "Requests",
    "attempts": "Deliveries",
}
"""The sections of the page, by id, with their headings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What the page shows at one moment.

    Attributes:
        facts: The facts about the service.
        entries: The journal, as `watch.journal_json.entries` returns it.
        minutes: The history, as `History.minutes` returns it.
        dead_letters: The first dead letters.
        token: What forms send back, which no other page knows.
        text: The changes have to contain this, in any case.
        type: The changes have to be of this type.
    """

    facts: Facts
    entries: Mapping[str, Sequence[Mapping[str, Any]]]
    minutes: Sequence[tuple[int, Sequence[float]]]
    dead_letters: Sequence[StoredDeadLetter] = ()
    token: str = ""
    text: str = ""
    type: str = ""


def page(shown: Shown) -> str:
    """The whole page."""
    made = sections(shown)
    parts = [
        f'<section aria-labelledby="{name}-heading"{"" if made[name] else " hidden"}>'
        f'<h2 id="{name}-heading">{heading}</h2>'
        f"{_filters(shown) if name == 'changes' else ''}"
        f'<div id="{name}">{made[name]}</div></section>'
        for name, heading in SECTIONS.items()
        if name != "state"
    ]
    body = (
        f'<p id="live" class="quiet">As of {_date(shown.facts.now)}. <a href="/">Read again</a></p>'
        f'<div id="state">{made["state"]}</div><p id="said" role="status"></p>{"".join(parts)}'
    )
    return document("statsig-otel", body)


def document(title: str, body: str) -> str:
    """A page with a title and this content."""
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title>"
        '<link rel="icon" href="data:,"><link rel="stylesheet" href="/page.css">'
        '<script src="/page.js" defer></script></head><body>'
        '<header><h1><a href="/">statsig-otel</a></h1></header>'
        f"<main>{body}</main></body></html>"
    )


def sections(shown: Shown) -> dict[str, str]:
    """The content of each section; empty for one that is not shown now."""
    entries, now = shown.entries, shown.facts.now
    return {
        "state": _state(shown.facts),
        "steps": _steps(shown.facts),
        "troubles": "".join(map(_trouble, troubles(shown.facts))),
        "chart": chart(shown.minutes),
        "exporters": _exporters(shown),
        "dead-letters": _dead_letters(shown),
        "changes": _changes(shown),
        "requests": _table(
            (_TIME, "Receiver", "Answer", "What happened"),
            (_request(group, now) for group in _grouped(entries["requests"], _refusal)[:_MOST_ROWS]),
            "No request has arrived since the start.",
        ),
        "attempts": _table(
            (_TIME, "Exporter", "Outcome", "Records", "Took", "The backend's answer"),
            (_attempt(group, now) for group in _grouped(entries["attempts"], _failure)[:_MOST_ROWS]),
            "Nothing was sent since the start.",
        ),
    }


def _state(facts: Facts) -> str:
    """The first sentence large, the others below it, with a sign that is also in words: what is wrong comes first."""
    first, *others = sentences(facts)
    found = troubles(facts)
    sign = "bad" if any(not one.can_wait for one in found) else "passing" if found else "good"
    if sign == "good" and not any(one.last_change for one in facts.receivers):
        sign = "open"
    rest = f'<p class="others">{_text(" ".join(others))}</p>' if others else ""
    return f'<p class="state {sign}">{_text(first)}</p>{rest}<p class="quiet since">Started {_date(facts.since)}</p>'


def _steps(facts: Facts) -> str:
    found = steps(facts)
    urls = "".join(map(_url, facts.receivers)) if found else ""
    rows = "".join(
        f"<li{_attribute('aria-current', 'step' if step.is_current else '')} "
        f'class="{"done" if step.is_done else "to-do"}">'
        f"{_text(step.text)} <span>({'done' if step.is_done else 'now' if step.is_current else 'to do'})</span></li>"
        for step in found
    )
    return f"<ol>{rows}</ol>{urls}" if found else ""


def _url(receiver: ReceiverFacts) -> str:
    """What to enter in Statsig's console, until a request has shown that it was entered."""
    if not receiver.url or receiver.last_verified or receiver.answers:
        return ""
    is_local = _LOCAL.match(receiver.url) is not None
    public = f"https://YOUR-HOST{receiver.path}" if is_local else receiver.url
    behind = f"<br>What is sent there has to reach: <code>{_text(receiver.url)}</code>" if is_local else ""
    where = "in Statsig's console (Settings &gt; Integrations &gt; Generic Webhook)"
    return f"<p>The URL of {_text(receiver.name)} {where}: <code>{_text(public)}</code>{behind}</p>"


def _trouble(one: Trouble) -> str:
    when = f'<p class="quiet">The last one: {_date(one.at)}</p>' if one.is_past else ""
    title, sign = _text(one.title), " passing" if one.can_wait else ""
    said = f"<h3>{title}</h3><p>{_text(one.check)}</p>{when}"
    return f'<article class="trouble{sign}" data-key="{title}">{said}</article>'


def _exporters(shown: Shown) -> str:
    head = ("Exporter", "State", "Waiting", "Oldest", "Sent/min", "Attempts", "Last error", "")
    rows = (_exporter(one, shown) for one in shown.facts.exporters)
    return _table(head, rows, "There is no exporter.")


def _exporter(one: ExporterFacts, shown: Shown) -> "_Row":
    button = (
        _button("/exporters", {"exporter": one.name}, "resume", "Try now", of=one.name, token=shown.token)
        if one.waiting is not None and one.state in FAILED_STATES
        else ""
    )
    return _Row(
        one.name,
        (
            f'<b>{_breakable(one.name)}</b><span class="quiet type long">{_breakable(_cut(one.destination))}</span>',
            f'<span class="state-{_text(one.state)}">{_text(one.state)}</span>'
            if one.delivered or one.state != "idle"
            else '<span class="quiet">nothing delivered yet</span>',
            "no queue" if one.waiting is None else str(one.waiting),
            age(one.oldest) if one.oldest is not None and one.waiting else "",
            str(one.delivered_last_minute),
            str(one.attempts) if one.attempts else "",
            _long(one.last_error),
            button,
        ),
        is_bad=one.state in _NEEDS_SOMEBODY,
    )


def _dead_letters(shown: Shown) -> str:
    if not shown.facts.dead_letters and not shown.dead_letters:
        return ""
    head = ("Number", _TIME, "Kind", "Of", "Reason", "")
    rows = (_dead_letter(one, shown) for one in shown.dead_letters)
    rest = shown.facts.dead_letters - len(shown.dead_letters)
    more = f'<p class="quiet">And {rest} more: <code>statsig-otel dead-letters list</code> has all.</p>'
    return _table(head, rows, "") + (more if rest > 0 else "")


def _dead_letter(one: StoredDeadLetter, shown: Shown) -> "_Row":
    token = shown.token
    name, link = f"dead letter {one.id}", f"/dead-letter?id={one.id}"
    replay = _button("/dead-letters", {"id": str(one.id)}, "replay", "Replay", of=name, token=token)
    drop = _button("/dead-letters", {"id": str(one.id)}, "drop", "Drop", of=name, token=token)
    show = f'<a href="{link}" class="show" aria-label="Show {name}">Show</a>'
    kept = _clock(one.at_ms / 1000, shown.facts.now)
    return _Row(
        str(one.id),
        (str(one.id), kept, _text(one.kind), _text(one.owner), _long(one.reason), show + replay + drop),
    )


def _filters(shown: Shown) -> str:
    types = sorted({_cut(one["type"]) for one in shown.entries["changes"] if "type" in one} | {shown.type} - {""})
    options = "".join(f"<option{' selected' if one == shown.type else ''}>{_text(one)}</option>" for one in types)
    return (
        '<form class="filters" method="get" action="/#changes-heading"><label>Text '
        f'<input type="search" name="text" id="filter-text" value="{_text(shown.text)}"></label> <label>Type '
        f'<select name="type" id="filter-type"><option value="">all</option>{options}</select></label> '
        "<button>Filter</button></form>"
    )


def _changes(shown: Shown) -> str:
    found = [one for one in shown.entries["changes"] if _matches(one, shown.text, shown.type)]
    head = (_TIME, "Flag", "Action", "Who", "Environments", "Description", "Services", "")
    if not found and not shown.text and not shown.type:
        return '<p class="quiet never">No config change has been accepted since the start.</p>'
    rows = (_change(one, shown.facts.now) for one in found[:_MOST_CHANGES])
    rest = len(found) - _MOST_CHANGES
    more = f'<p class="quiet more">And {rest} older ones: Filter searches them, too.</p>' if rest > 0 else ""
    return _table(head, rows, "No change matches the filter.") + more


def _matches(change: Mapping[str, Any], text: str, type_: str) -> bool:
    words = (str(value) for key, value in change.items() if key not in ("at", "bytes"))
    return (not type_ or _cut(change.get("type", "")) == type_) and text.lower() in "\n".join(words).lower()


def _change(change: Mapping[str, Any], now: float) -> "_Row":
    link = f"/change?uid={quote(change['uid'])}"
    title, type_ = change.get("flag") or change.get("title") or change["uid"], _cut(change.get("type", ""))
    return _Row(
        change["uid"],
        (
            _clock(datetime.fromisoformat(change["at"]).timestamp(), now),
            f'<b class="long">{_breakable(_cut(title))}</b><span class="quiet type long">{_breakable(type_)}</span>',
            _long(", ".join(filter(None, (change.get("action", ""), change.get("note", ""))))),
            _long(change.get("who", "")),
            _long(", ".join(map(str, change.get("environments", ())))),
            _long(change.get("description", "")),
            _long(", ".join(map(str, change["services"]))),
            f'<a href="{link}" class="show" aria-label="Show the record of {_text(_cut(title))}">Record</a>',
        ),
        is_bad=change.get("note") == "missed",
        type=type_,
    )


def _refusal(entry: Mapping[str, Any]) -> Sequence[object]:
    """How a request ended, and what refused ones that are one row have in common."""
    return entry["status"], entry["receiver"], entry["reason"], entry["port"], entry["path"]


def _failure(entry: Mapping[str, Any]) -> Sequence[object]:
    """How an attempt ended, and what failed ones that are one row have in common."""
    return entry["outcome"], entry["exporter"], entry["reason"]


def _grouped(
    entries: Sequence[Mapping[str, Any]], common: Callable[[Mapping[str, Any]], Sequence[object]]
) -> Sequence[Sequence[Mapping[str, Any]]]:
    """The entries, of which those that went wrong in the same way and followed one another are together."""
    groups: list[list[Mapping[str, Any]]] = []
    for entry in entries:
        if groups and common(entry)[0] not in _FINE and common(entry) == common(groups[-1][-1]):
            groups[-1].append(entry)
        else:
            groups.append([entry])
    return groups


def _when(group: Sequence[Mapping[str, Any]], now: float) -> str:
    """When the first of a group began, and when the last one was, as far as it is known."""
    times = group[-1]["at"], group[0].get("last", group[0]["at"])
    first, last = (_clock(datetime.fromisoformat(one).timestamp(), now) for one in times)
    return last if first == last else f"{first} – {last}"


def _times(group: Sequence[Mapping[str, Any]]) -> str:
    number = sum(one["count"] for one in group)
    return f" ({number} times)" if number > 1 else ""


def _request(group: Sequence[Mapping[str, Any]], now: float) -> "_Row":
    entry, status = group[0], group[0]["status"]
    where = entry["receiver"] or (f"port {entry['port']}" if entry["port"] else "")
    return _Row(
        f"{group[-1]['at']} {entry['receiver']} {entry['reason']}",
        (_when(group, now), _breakable(where), f"{status or 'none'}{_times(group)}", _said(entry)),
        is_bad=status not in _FINE,
    )


def _said(entry: Mapping[str, Any]) -> str:
    """What happened with requests, in a sentence; what to check after a refusal opens below it."""
    if entry["reason"] == "url_verification":
        return "Statsig verified the URL."
    if entry["reason"] == "accepted":
        kinds = {
            "accepted": ("Accepted", "config change"),
            "duplicates": ("Accepted before", "config change"),
            "ignored": ("Ignored", "event"),
            "invalid": ("Invalid", "config change"),
        }
        items = entry["items"]
        parts = [f"{what}: {counted(items[key], noun)}." for key, (what, noun) in kinds.items() if items.get(key)]
        return " ".join(parts) or "There was nothing in it."
    path = f"a request came to {entry['path']}" if entry["reason"] == "method" and entry["path"] else ""
    said = ": ".join(filter(None, ("Refused", why(entry["reason"], entry["detail"], entry["path"]), path)))
    said = _text(_cut(f"{said}."))
    advice = _text(check(entry["reason"], entry["detail"], entry["status"]))
    return f"<details><summary>{said}</summary>{advice}</details>" if advice else said


def _attempt(group: Sequence[Mapping[str, Any]], now: float) -> "_Row":
    entry = group[0]
    outcome = str(entry["outcome"]).replace("_", " ")
    return _Row(
        f"{group[-1]['at']} {entry['exporter']} {entry['outcome']}",
        (
            _when(group, now),
            _breakable(entry["exporter"]),
            f"{_text(outcome)}{_times(group)}",
            f"{entry['delivered']} of {entry['records']}",  # of the last ones: each time it was the same records
            f"{entry['seconds'] * 1000:.0f} ms",
            _long(entry["reason"]),
        ),
        is_bad=entry["outcome"] not in _FINE,
    )


def record_page(change: Mapping[str, Any], records: Sequence[Any]) -> str:
    """The page with the whole record of a change."""
    shown = json.dumps(records if len(records) != 1 else records[0], indent=2)
    if not records:
        shown = f"The records have {change['bytes']} bytes, which is too much to keep for this page."
    title = change.get("title") or change["uid"]
    return document(str(title), f"<h2>{_text(title)}</h2>{_copyable(shown)}")


def dead_letter_page(described: Mapping[str, Any], content: str) -> str:
    """The page with the whole content of a dead letter."""
    terms = "".join(
        f"<dt>{_text(key.replace('_', ' '))}</dt><dd>{_text(value)}</dd>"
        for key, value in described.items()
        if value is not None
    )
    title = f"Dead letter {described['id']}"
    return document(title, f"<h2>{title}</h2><dl>{terms}</dl>{_copyable(content)}")


def confirm_page(number: str, token: str) -> str:
    """The page that asks before a dead letter is dropped."""
    ask = "It may be the only copy of a change, and is deleted for good."
    button = _button("/dead-letters", {"id": number, "sure": "yes"}, "drop", "Drop it for good", token=token)
    title = f"Drop dead letter {_text(number)}?"
    return document(title, f'<h2>{title}</h2><p>{ask}</p>{button} <p><a href="/">No, back to the page</a></p>')


def message_page(title: object, message: object) -> str:
    """A page with one message."""
    return document(
        str(title), f'<h2>{_text(title)}</h2><p id="message">{_text(message)}</p><p><a href="/">Back</a></p>'
    )


def _copyable(text: str) -> str:
    return f'<button type="button" class="copy" hidden>Copy</button><pre tabindex="0">{_lines(text)}</pre>'


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of a table: its key, and cells that are HTML."""

    key: str
    cells: Sequence[str]
    is_bad: bool = False
    type: str = ""


def _table(head: Sequence[str], rows: Iterable[_Row], nothing: str) -> str:
    body = "".join(_row(head, row) for row in rows)
    if not body:
        return f'<p class="quiet">{nothing}</p>'
    columns = "".join(f'<th scope="col">{name or "<span class=hidden>Actions</span>"}</th>' for name in head)
    return f"<table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>"


def _row(head: Sequence[str], row: _Row) -> str:
    cells = "".join(
        f'<td data-name="{name}">{cell}</td>' if cell else f'<td class="empty" data-name="{name}"></td>'
        for name, cell in zip(head, row.cells, strict=True)
    )
    classes = ' class="bad"' if row.is_bad else ""
    return f'<tr data-key="{_text(row.key)}"{_attribute("data-type", row.type)}{classes}>{cells}</tr>'


def _button(action: str, values: Mapping[str, str], verb: str, label: str, *, token: str, of: str = "") -> str:
    fields = {**values, "action": verb, "token": token}
    hidden = "".join(f'<input type="hidden" name="{key}" value="{_text(value)}">' for key, value in fields.items())
    name = f' aria-label="{_text(f"{label}: {of}")}"' if of else ""
    return f'<form method="post" action="{action}" class="act">{hidden}<button{name}>{label}</button></form>'


def _attribute(name: str, value: str) -> str:
    return f' {name}="{_text(value)}"' if value else ""


def _text(value: object) -> str:
    """A value as HTML. Characters that are not seen, such as bidi overrides, become escapes."""
    return escape(printable(str(value)))


def _cut(text: object) -> str:
    """The beginning of a text that is too long for a cell. The record has all of it."""
    whole = str(text)
    return whole if len(whole) <= _LONGEST else f"{whole[:_LONGEST]}…"


def _long(text: object) -> str:
    """The first lines of a text, for a cell."""
    return f'<span class="long">{_lines(_cut(text))}</span>' if text else ""


def _lines(text: object) -> str:
    """A text of several lines as HTML."""
    return "\n".join(map(_text, str(text).splitlines()))


def _breakable(text: str) -> str:
    """A name as HTML that may be broken where it has signs such as `_`."""
    return _SIGN.sub(r"\1<wbr>", _text(text))


def _date(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return f'<time datetime="{moment:%Y-%m-%dT%H:%M:%SZ}">{moment:%Y-%m-%d %H:%M:%S} UTC</time>'


def _clock(seconds: float, now: float) -> str:
    """A time of the column `_TIME`, with its day unless that is today."""
    moment, today = datetime.fromtimestamp(seconds, UTC), datetime.fromtimestamp(now, UTC)
    day = "" if moment.date() == today.date() else f"{moment:%b} {moment.day}, "
    return f'<time datetime="{moment:%Y-%m-%dT%H:%M:%SZ}">{day}{moment:%H:%M:%S}</time>'
