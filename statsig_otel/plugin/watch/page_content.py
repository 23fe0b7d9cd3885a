"""Collects what the live page shows: facts about the service, the journal, the last hour, rates and dead letters."""

import asyncio
import contextlib
import secrets
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

from statsig_otel._journal import journal
from statsig_otel.exporters.queue import dead_letters, schema
from statsig_otel.exporters.queue.dead_letters import Selection, StoredDeadLetter
from statsig_otel.plugin.watch.facts import Facts
from statsig_otel.plugin.watch.history import History, totals
from statsig_otel.plugin.watch.journal_json import entries
from statsig_otel.plugin.watch.page import Shown, sections

_LOOKED_AT_FOR: Final = 0.5
"""Seconds for which a look counts."""

_LISTED: Final = 20


class ShownService(Protocol):
    """A service, as its live page sees it."""

    def facts(self) -> Facts:
        """What is known of it."""

    def command(self, name: str, arguments: dict[str, Any]) -> Any:
        """Carry out a command of the control socket.

        Raises:
            ControlError: It is refused.
        """

    @property
    def database(self) -> Path | None:
        """The file of the queue; None without one."""


class PageContent:
    """Looks the page's content up, at most once in half a second.

    Attributes:
        service: The service.
        token: What forms have to send back.
        history: The last hour.
    """

    def __init__(self, service: ShownService) -> None:
        self.service: Final = service
        self.token: Final = secrets.token_urlsafe(32)
        self._streams: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        self._is_closed = False
        self.history: Final = History(lambda: totals(one.name for one in service.facts().receivers))
        self._last: Shown | None = None
        self._sections: dict[str, str] | None = None  # of it
        self._until = 0.0

    @property
    def streams(self) -> int:
        """The number of readers that are told of changes."""
        return len(self._streams)

    def begin_stream(self) -> asyncio.Event:
        """One more reader is told of changes, in the running event loop, until this event is set."""
        ended = asyncio.Event()
        self._streams[ended] = asyncio.get_running_loop()  # before `_is_closed` is read: `close` goes through these
        if self._is_closed:
            ended.set()
        return ended

    def end_stream(self, ended: asyncio.Event) -> None:
        """The reader of this event has left."""
        self._streams.pop(ended, None)

    def close(self) -> None:
        """End all streams, from any thread, and the history."""
        self.history.stop()
        self._is_closed = True
        for ended, loop in list(self._streams.items()):
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(ended.set)

    def look(self, text: str = "", type_: str = "") -> Shown:
        """How the service is, or was a moment ago, with a filter of changes."""
        now = time.monotonic()
        if self._last is None or now >= self._until:
            facts = self.service.facts()
            self._last = Shown(
                facts=facts,
                entries=entries(journal, known=self._last.entries["changes"] if self._last else ()),
                minutes=self.history.minutes(),
                dead_letters=self._dead_letters(),
                token=self.token,
            )
            self._sections = None
            self._until = now + _LOOKED_AT_FOR
        return replace(self._last, text=text, type=type_) if text or type_ else self._last

    def sections(self, text: str = "", type_: str = "") -> dict[str, str]:
        """The sections of the page: made once for all readers, and apart for one with a filter."""
        shown = self.look(text, type_)
        if text or type_:
            return sections(shown)
        if self._sections is None:
            self._sections = sections(shown)
        return self._sections

    def forget(self) -> None:
        """Look again at once: something was changed."""
        self._last = None

    def _dead_letters(self) -> list[StoredDeadLetter]:
        """The first dead letters."""
        database = self.service.database
        if database is None:
            return []
        try:
            with contextlib.closing(schema.connect_reading(database)) as connection:
                return dead_letters.select(connection, Selection(), limit=_LISTED)
        except sqlite3.Error:
            return []

    def dead_letter(self, number: int) -> tuple[StoredDeadLetter, bytes] | None:
        """A dead letter and its content; None if there is none with this number."""
        database = self.service.database
        if database is None:
            return None
        with contextlib.closing(schema.connect_reading(database)) as connection:
            found = dead_letters.select(connection, Selection(ids=(number,)))
            content = dead_letters.content(connection, number)
        return (found[0], content) if found and content is not None else None
