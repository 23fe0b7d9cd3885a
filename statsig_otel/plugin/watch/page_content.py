"""Collects what the live page shows: facts about the service, the journal, the last hour, rates and dead letters."""

import asyncio
import contextlib
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
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
from statsig_otel.plugin.watch.recent import Recent

_LISTED: Final = 20


class ShownService(Protocol):
    """A service whose state a live page shows."""

    def facts(self) -> Facts:
        """Its state now."""

    def command(self, name: str, arguments: dict[str, Any]) -> Any:
        """Carry out a command of the control socket.

        Raises:
            ControlError: It is refused.
        """

    @property
    def database(self) -> Path | None:
        """The file of the queue; None without one."""


class PageContent:
    """Collects the page's content, at most once in half a second.

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
        self._shown = Recent(self._make)
        self._changes: Sequence[Mapping[str, Any]] = ()  # that were shown last, whose records are decoded
        self._made: tuple[Shown, dict[str, str]] | None = None  # the sections of it

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

    def shown(self, text: str = "", type_: str = "") -> Shown:
        """What the page shows now, or showed a moment ago, with a filter of changes."""
        shown = self._shown.get()
        return replace(shown, text=text, type=type_) if text or type_ else shown

    def _make(self) -> Shown:
        facts = self.service.facts()
        shown = Shown(
            facts=facts,
            entries=entries(journal, known=self._changes),
            minutes=self.history.minutes(),
            dead_letters=self._dead_letters(),
            token=self.token,
        )
        self._changes = shown.entries["changes"]
        return shown

    def sections(self, text: str = "", type_: str = "") -> dict[str, str]:
        """The sections of the page: made once for all readers, and apart for one with a filter."""
        shown = self.shown(text, type_)
        if text or type_:
            return sections(shown)
        if self._made is None or self._made[0] is not shown:
            self._made = shown, sections(shown)
        return self._made[1]

    def forget(self) -> None:
        """Show the new state at once: something was changed."""
        self._shown.forget()

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
