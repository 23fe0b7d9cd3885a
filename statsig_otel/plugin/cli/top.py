"""`statsig-otel top`: shows a running service at a glance, again each second, by way of its control socket."""

import json
import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

import click

from statsig_otel.exporters.terminal import pad, paint, printable, shorten, wants_color, width, wrap, write
from statsig_otel.exporters.wording import age, counted
from statsig_otel.plugin.cli.options import json_option
from statsig_otel.plugin.cli.queue import location_options, queue_access
from statsig_otel.plugin.control.queue_access import QueueAccess
from statsig_otel.plugin.control.socket import ControlError

_PAUSE: Final = 1.0
"""Seconds between two readings."""

_ENTRIES: Final = 50
"""The entries of each kind that are asked for: no terminal shows more of them."""

_FEWEST: Final = (40, 10)
"""The columns and lines of the smallest terminal."""

_EXPORTERS: Final = ("EXPORTER", "STATE", "WAITING", "OLDEST", "SENT/MIN", "SENT", "LAST ERROR")
_REQUESTS: Final = ("AGO", "N", "STATUS", "RECEIVER", "REASON", "WHAT HAPPENED")
_CHANGES: Final = ("AGO", "CHANGE", "ENVIRONMENTS", "WHO", "DESCRIPTION")
_NUMBERS: Final = frozenset({"WAITING", "OLDEST", "SENT/MIN", "SENT", "AGO", "N"})
_WIDEST: Final = {"EXPORTER": 20, "RECEIVER": 14, "REASON": 27, "WHO": 16, "CHANGE": 32, "ENVIRONMENTS": 16}
"""The most columns of a cell, so that the last cell of a line has room."""

_ELSEWHERE: Final = "If it runs on another queue, pass its --config FILE or --directory DIR"

_MOST_EXPORTERS: Final = 6
_MOST_WORDS: Final = 4
_COLORS: Final = {"retrying": "33", "refused": "31", "blocked": "1;31"}

# ECMA-48 and xterm: another screen without a cursor, and back; to its beginning; the end of a line, and of the screen.
_ENTER: Final = "\x1b[?1049h\x1b[?25l"
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"
_HOME: Final = "\x1b[H"
_CLEAR_LINE: Final = "\x1b[K"
_CLEAR_BELOW: Final = "\x1b[J"


@click.command()
@location_options
@click.option("--once", is_flag=True, help="Print it once, and end.")
@json_option
def command(*, once: bool, as_json: bool) -> None:
    """Show a running service at a glance: its state, its exporters, its last requests and changes.

    The screen is renewed each second; q or Ctrl-C ends it. If the output is not a terminal, it is printed once. The
    queue is searched for as for `statsig-otel queue`. A service without a sending queue can't be shown: use its live
    page.

    \b
    Exit codes:
      0  shown
      1  no service runs on this queue
      2  an option is wrong
    """
    with queue_access() as access:
        if as_json or once or not sys.stdout.isatty():
            seen = _status_of(access)
            if seen is None:
                raise ControlError(f"no service runs on the queue in {access.directory}\nhint: {_ELSEWHERE}")
            if as_json:
                click.echo(json.dumps(seen, indent=2))
            else:
                columns, lines = shutil.get_terminal_size()
                write(sys.stdout, "\n".join(_screen(seen, columns, lines, colored=_colored())) + "\n")
            return
        _watch(access)


def _status_of(access: QueueAccess) -> dict[str, Any] | None:
    """What the service says of itself, and its journal; None if none runs."""
    status = access.ask("status")
    journal = access.ask("journal", limit=_ENTRIES)
    return None if status is None or journal is None else {"status": status, "journal": journal}


def _colored() -> bool:
    return wants_color("auto", sys.stdout, os.environ)


def _watch(access: QueueAccess) -> None:
    """Show it until somebody has seen enough. A service that ends, or starts again, is shown as such."""
    with _other_screen():
        while True:
            columns, lines = shutil.get_terminal_size()
            try:
                seen = _status_of(access)
                why = f"No service runs on the queue in {access.directory}. Once it starts, it is shown. {_ELSEWHERE}."
            except ControlError as error:
                seen, why = None, str(error)
            shown = wrap(printable(why), columns)
            if seen is not None:
                shown = _screen(seen, columns, lines, colored=_colored())
            # Each line is cleared first: behind its last column xterm would clear that one.
            text = "".join(f"{_CLEAR_LINE}{line}\n" for line in shown[: lines - 1])
            write(sys.stdout, f"{_HOME}{text}{_CLEAR_BELOW}")
            if _is_enough():
                return


def _is_enough() -> bool:
    """Wait until the next reading; whether somebody presses q meanwhile, or the keyboard is gone."""
    until = time.monotonic() + _PAUSE
    while (left := until - time.monotonic()) > 0:
        if not sys.stdin.isatty():
            time.sleep(left)
        elif select.select([sys.stdin], [], [], left)[0]:
            key = os.read(sys.stdin.fileno(), 1)
            if key in (b"q", b"Q", b""):
                return True
    return False


@contextmanager
def _other_screen() -> Iterator[None]:
    """Use the terminal's second screen, without echo of keys. Both are as before at the end, also after a signal."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    before = termios.tcgetattr(sys.stdin) if sys.stdin.isatty() else None
    try:
        if before is not None:
            tty.setcbreak(sys.stdin)
        write(sys.stdout, _ENTER)
        yield
    except KeyboardInterrupt:
        pass
    finally:
        write(sys.stdout, _LEAVE)
        if before is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _screen(seen: Mapping[str, Any], columns: int, lines: int, *, colored: bool) -> list[str]:
    """The lines of the screen: none is wider than the terminal, and there are fewer than it has."""
    columns, lines = max(columns, _FEWEST[0]), max(lines, _FEWEST[1])
    status, journal = seen["status"], seen["journal"]
    now = time.time()
    up = age(max(now - _seconds(status["since"]), 0))
    head = f"statsig-otel {status['version']}, process {status['pid']}, up {up}"
    words = wrap(printable(status["words"]), columns)
    if len(words) > _MOST_WORDS:
        words = [*words[: _MOST_WORDS - 1], shorten(f"{words[_MOST_WORDS - 1]} ...", columns)]
    shown = [shorten(printable(head), columns), *words, ""]
    exporters = list(status["exporters"].items())
    table = _table(_EXPORTERS, [_exporter(name, one) for name, one in exporters[:_MOST_EXPORTERS]], columns)
    states = [one["state"] for _, one in exporters]
    colors = ["", *(_COLORS.get(state, "") for state in states)]
    shown += [paint(line, color, colored=colored) for line, color in zip(table, colors, strict=False)]
    if len(exporters) > _MOST_EXPORTERS:
        shown.append(f"and {len(exporters) - _MOST_EXPORTERS} more: statsig-otel queue")
    requests = [_request(one, now) for one in journal["requests"]]
    changes = [_change(one, now) for one in journal["changes"]]
    # Above each table there are two lines. What one of them does not need is the other's.
    room = max(lines - 1 - len(shown) - 4, 0)
    for_requests = min(len(requests), max(room // 2, room - len(changes)))
    shown += ["", *(_table(_REQUESTS, requests[:for_requests], columns) if requests else ["No request yet."])]
    shown += ["", *(_table(_CHANGES, changes[: room - for_requests], columns) if changes else ["No change yet."])]
    return shown[: lines - 1]


def _exporter(name: str, one: Mapping[str, Any]) -> tuple[str, ...]:
    oldest = one.get("oldest_age_seconds")
    return (
        name,
        one["state"],
        str(one.get("waiting", "-")),
        "-" if oldest is None else age(oldest),
        str(one["delivered_last_minute"]),
        str(one["delivered"]),
        one.get("last_error") or "",
    )


def _request(one: Mapping[str, Any], now: float) -> tuple[str, ...]:
    items = ", ".join(
        counted(number, "duplicate") if word == "duplicates" else f"{number} {word}"
        for word, number in one["items"].items()
    )
    return (
        age(max(now - _seconds(one["at"]), 0)),
        str(one["count"]),
        str(one["status"] or "-"),
        one["receiver"],
        one["reason"],
        one["detail"] or items,
    )


def _change(one: Mapping[str, Any], now: float) -> tuple[str, ...]:
    return (
        age(max(now - _seconds(one["at"]), 0)),
        f"{one['note']}: {one.get('title') or one['uid']}" if "note" in one else one.get("title") or one["uid"],
        ", ".join(map(str, one.get("environments", ()))),
        one.get("who", ""),
        one.get("description", ""),
    )


def _seconds(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], columns: int) -> list[str]:
    """Aligned columns, numbers to the right. The last one takes what is left. Unprintable characters are escaped."""
    cells = [list(head)]
    for row in rows:
        named = zip(head, row, strict=True)
        cells.append([shorten(printable(text), _WIDEST.get(name, columns)) for name, text in named])
    widths = [max(map(width, column)) for column in zip(*cells, strict=True)]
    shown = []
    for row in cells:
        named_sizes = zip(head, row, widths, strict=True)
        line = "  ".join(
            " " * (size - width(text)) + text if name in _NUMBERS else pad(text, size)
            for name, text, size in named_sizes
        )
        shown.append(shorten(line.rstrip(), columns))
    return shown
