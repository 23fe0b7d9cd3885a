"""Reads a period of the audit log over HTTP: only GET, and slower than half of the published rate limit.

The links to the next page in Statsig's examples have no scheme, so the pages' URLs are made here. Pages are counted
from the newest entry, so an entry that is added meanwhile moves all others on. To prevent that, the newest entry is
asked for first, and the pages name it in `latestID`. Nothing is missed if the server takes that entry out of the pages,
or ignores the parameter: then entries come twice, and their ids tell. Dates have no time zone, and whether the last one
is included is not documented, so the dates that are asked for are two days wider than the period.
"""

import contextlib
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from statsig_otel import __version__
from statsig_otel.exporters.exporter import RetryLater
from statsig_otel.exporters.network.answers import http_failure, one_line, server_time, untrusted
from statsig_otel.exporters.network.proxy import proxy_for
from statsig_otel.exporters.network.tls import ClientTlsSettings
from statsig_otel.plugin.audit_log import URL
from statsig_otel.plugin.audit_log.entries import AuditEntry, MalformedPageError, Page, parse_page

_PAGE_SIZES: Final = (50, 5, 1)
"""Entries of a page. No maximum is documented; other clients ask for 50. Fewer if a page is too large: an entry
may have many MiB of old and new values."""

_WIDER: Final = timedelta(days=2)
_BEFORE: Final = 3600
_FAR_BEFORE: Final = 3 * 86_400
"""Seconds before the period. Behind a page that is that much older nothing of the period follows: by an hour if all
entries so far came in order, and otherwise by three days, since then the server ignores the dates too."""

_MOST_ALIKE: Final = 3
"""Pages in a row without a new entry, after which the server is believed to ignore the page's number."""

_WINDOWS: Final = ((10.0, 40), (900.0, 400))
"""Seconds, and the most requests in them. Published are 100 in 10 s and 900 in 15 minutes for a whole project."""

_WAITS: Final = (10.0, 20.0, 40.0, 80.0)
"""Seconds before another attempt, if the server asks for none. The first one is that of the shorter limit."""

_LONGEST_PATIENCE: Final = 900.0
_CHUNK: Final = 64 << 10
_MOST_BYTES: Final = 64 << 20
_OK: Final = range(200, 300)

_HINTS: Final = {
    401: "use a console key of this project (Project Settings, API Keys), not a server or client key",
    403: "the key may not read the audit log: use one of a role that may",
    404: "endpoint must be the URL of the audit log, such as " + URL,
}


class AuditLogError(Exception):
    """The audit log can't be read. The message says why and what to do, and never shows the key.

    Attributes:
        after: The seconds that the server asks to wait.
    """

    def __init__(self, message: str, *, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


class _TooLargeError(AuditLogError):
    """A page is too large."""


class AuditLogClient:
    """Reads the audit log of one project.

    Args:
        url: Where it is.
        key: A console key of the project.
        tls: The client's side of TLS.
        timeout: The most seconds for one request.
        wait: Waits the seconds that it is given.
        failed: Called with why an attempt has failed, before it waits for another one.
        asked: When a client before this one has sent requests, by the monotonic clock. This one adds its own.

    Raises:
        OSError: A file of `tls` can't be read.
        ValueError: A file of `tls` does not contain what its key requires, or the environment names a proxy that can't
            be used.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        tls: ClientTlsSettings,
        timeout: float,
        wait: Callable[[float], object] = time.sleep,
        failed: Callable[[str], object] = lambda _: None,
        asked: list[float] | None = None,
    ) -> None:
        parts = urlsplit(url)
        self._url = url
        self._key = key
        self._timeout = timeout
        self._wait = wait
        self._failed = failed
        self._asked = [] if asked is None else asked
        proxy = proxy_for(parts)
        self._hide = (key, proxy.authorization, proxy.password) if proxy else (key,)
        self._place = f"{url} through the proxy {proxy}" if proxy else url
        options: dict[str, Any] = {"retries": False, "maxsize": 1}
        if parts.scheme == "https":
            options["ssl_context"] = tls.context(tls.read())
            if tls.server_name_override:
                options["server_hostname"] = tls.server_name_override
        self._pool: urllib3.PoolManager = (
            urllib3.ProxyManager(f"http://{proxy}", proxy_headers=proxy.headers, **options)
            if proxy
            else urllib3.PoolManager(**options)
        )

    def read(self, begin: int, end: int, save: Callable[[bytes], object] = lambda _: None) -> Page:
        """The entries of a period, and some of before and after it, the newest first.

        Args:
            begin: The first second, since the epoch.
            end: The last one.
            save: Called with the body of each successful answer, also of one that can't be read.

        Raises:
            AuditLogError: The log can't be read.
        """
        *larger, smallest = _PAGE_SIZES
        for size in larger:
            with contextlib.suppress(_TooLargeError):
                return self._read(begin, end, save, size)
        return self._read(begin, end, save, smallest)

    def _read(self, begin: int, end: int, save: Callable[[bytes], object], size: int) -> Page:
        period = {
            "sortKey": "time",
            "sortOrder": "desc",
            "startDate": str((datetime.fromtimestamp(begin, UTC) - _WIDER).date()),
            "endDate": str((datetime.fromtimestamp(end, UTC) + _WIDER).date()),
        }
        entries: dict[str, AuditEntry] = {}
        unreadable: dict[str, None] = {}  # in order, each once
        newest = self._page({**period, "limit": 1, "page": 1}, save)
        anchor = {"latestID": newest.entries[0].id} if newest.entries else {}
        page, number, alike = newest, 0, 0
        previous, is_sorted = end + _FAR_BEFORE, True
        while page.entries or page.unreadable:
            is_known = all(entry.id in entries for entry in page.entries) and unreadable.keys() >= {*page.unreadable}
            alike = alike + 1 if is_known else 0
            if alike > _MOST_ALIKE:
                raise AuditLogError(f"{self._place} gives the same entries again and again, whatever page is asked for")
            entries.update((entry.id, entry) for entry in page.entries)
            unreadable.update(dict.fromkeys(page.unreadable))
            if seconds := [entry.second for entry in page.entries]:
                is_sorted = is_sorted and seconds[0] <= previous and seconds == sorted(seconds, reverse=True)
                previous = seconds[0]
                if max(seconds) < begin - (_BEFORE if is_sorted else _FAR_BEFORE):
                    break
            number += 1
            page = self._page({**period, "limit": size, "page": number, **anchor}, save)
        if unreadable and not entries:
            raise AuditLogError(f"{self._place}: nothing in the log can be read: {next(iter(unreadable))}")
        newest_first = sorted(entries.values(), key=lambda entry: entry.second, reverse=True)
        return Page(tuple(newest_first), tuple(unreadable))

    def close(self) -> None:
        """Close the connection."""
        self._pool.clear()

    def _page(self, query: dict[str, str | int], save: Callable[[bytes], object]) -> Page:
        """One page, after as many attempts as make sense."""
        waits = iter(_WAITS)
        while True:
            self._keep_pace()
            found = self._ask(f"{self._url}?{urlencode(query)}")
            if isinstance(found, bytes):
                save(found)  # above all one that can't be read: it shows how the format differs
                try:
                    return parse_page(found)
                except MalformedPageError as error:
                    found = RetryLater(f"{self._place}: {error}")
            asked, wait = found.after or 0.0, next(waits, None)
            if wait is None:
                raise AuditLogError(f"{found.reason}. It was tried {len(_WAITS) + 1} times: try again later")
            if asked > _LONGEST_PATIENCE:
                message = f"{found.reason}. The server asks to wait {asked:.0f} s: try again then"
                raise AuditLogError(message, after=asked)
            self._failed(found.reason)
            self._wait(max(wait, asked))

    def _keep_pace(self) -> None:
        now = time.monotonic()
        asked = self._asked
        due = max((asked[-most] + seconds for seconds, most in _WINDOWS if len(asked) >= most), default=now)
        if due > now:
            self._wait(due - now)
        asked.append(time.monotonic())
        del asked[: -max(most for _, most in _WINDOWS)]

    def _ask(self, url: str) -> bytes | RetryLater:
        """The body of a successful answer, or why there is none now.

        Raises:
            AuditLogError: Another attempt would not help.
        """
        deadline = time.monotonic() + self._timeout
        headers = {
            "STATSIG-API-KEY": self._key,
            "User-Agent": f"statsig-otel/{__version__}",
            "Accept": "application/json",
        }
        body = bytearray()
        try:
            answer = self._pool.request(
                "GET", url, headers=headers, timeout=self._timeout, redirect=False, preload_content=False
            )
            try:
                while chunk := answer.read1(_CHUNK):
                    body += chunk
                    if len(body) > _MOST_BYTES:
                        raise _TooLargeError(f"an answer of {self._place} has more than {_MOST_BYTES >> 20} MiB")
                    if time.monotonic() > deadline:
                        return RetryLater(f"{self._place} did not answer in {self._timeout:g} s")
            finally:
                answer.close()  # unless all of it was read: then the connection is kept already
        except (HTTPError, OSError) as error:
            cause = _cause(error)
            reason = one_line(f"{type(cause).__name__} from {self._place}: {cause}", self._hide)
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise AuditLogError(f"{untrusted('audit_log::tls')}: {reason}") from error
            return RetryLater(reason)
        if answer.status in _OK:
            return bytes(body)
        outcome = http_failure(
            answer.status,
            bytes(body),
            content_type=answer.headers.get("Content-Type", ""),
            retry_after=answer.headers.get("Retry-After", ""),
            location=answer.headers.get("Location", ""),
            now=server_time(answer.headers.get("Date", "")) or time.time(),
            url=self._place,
            hide=self._hide,
        )
        if isinstance(outcome, RetryLater):
            return outcome
        reason = getattr(outcome, "reason", "")
        hint = _HINTS.get(answer.status)
        raise AuditLogError(f"{reason}: {hint}" if hint else reason)


def _cause(error: BaseException) -> BaseException:
    """The error that urllib3's errors wrap: their own messages repeat it with the addresses of objects."""
    while isinstance(error, HTTPError):
        wrapped = (getattr(error, "reason", None), *error.args, error.__cause__)
        inner = next((one for one in wrapped if isinstance(one, BaseException)), None)
        if inner is None:
            break
        error = inner
    return error
