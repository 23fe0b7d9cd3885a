"""Answers the requests of the live page: the page, its changes as server-sent events, and what its buttons do.

Who can read the page sees flags and people, and can change the queue. So only those requests are taken

- whose Host is an address, `localhost`, or a name of the settings: a page of somebody else could have a name that
  suddenly leads here (DNS rebinding);
- that have the token of the settings, if there is one;
- that, if they change something, have the token of the page, which pages of other origins can't read.
"""

import asyncio
import base64
import contextlib
import hmac
import ipaddress
import json
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from importlib.resources import files
from typing import Any, Final
from urllib.parse import parse_qs

import falcon.asgi
from falcon.asgi import Request, Response, SSEvent

from statsig_otel._futures import run_in_daemon
from statsig_otel._journal import journal
from statsig_otel._times import RETRY_AFTER
from statsig_otel.config.opaque import reveal
from statsig_otel.exporters.wording import counted
from statsig_otel.plugin.control.dead_letter_content import decoded, without_content
from statsig_otel.plugin.control.socket import ControlError
from statsig_otel.plugin.server.asgi_types import AsgiApp
from statsig_otel.plugin.server.exchange import late_body
from statsig_otel.plugin.settings.zpages import ZpagesSettings
from statsig_otel.plugin.watch import journal_json, page
from statsig_otel.plugin.watch.page_content import PageContent

_MOST_STREAMS: Final = 16
_BETWEEN_EVENTS: Final = 1.0
"""Seconds between two checks whether something has changed, while somebody reads."""

_PING: Final = 15.0
"""Seconds after which an event is sent although nothing has changed, so that a reader that left is noticed."""

_MOST_BODY: Final = 4096
_BODY_TIMEOUT: Final = 10.0
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
_CHALLENGE: Final = 'Basic realm="statsig-otel: any name, and the token as password", charset="UTF-8"'
_STATIC: Final = {"page.css": "text/css; charset=utf-8", "page.js": "text/javascript; charset=utf-8"}
_MOST_ID: Final = 2**63 - 1


def create_app(content: PageContent, settings: ZpagesSettings) -> AsgiApp:
    """The application of the page. It blocks its event loop, which has to be its own."""
    app = falcon.asgi.App(middleware=[_Guard(settings)])
    app.add_route("/", _Page(content))
    app.add_route("/events", _Events(content))
    app.add_route("/change", _Change())
    app.add_route("/dead-letter", _DeadLetter(content))
    app.add_route("/dead-letters", _DeadLetterActions(content))
    app.add_route("/exporters", _ExporterActions(content))
    for name, type_ in _STATIC.items():
        app.add_route(f"/{name}", _File(name, type_))
    app.set_error_serializer(_serialize_error)
    return late_body(app)


class _Guard:
    """Lets only those requests pass that the module's docstring names, and adds strict headers to every answer."""

    def __init__(self, settings: ZpagesSettings) -> None:
        host = settings.address[0]
        self._names = {"localhost", host.lower(), *(name.lower() for name in settings.hosts)} - {""}
        self._token = None if settings.token is None else reveal(settings.token).encode()

    async def process_request(self, req: Request, resp: Response) -> None:
        """Refuse a request of a stranger."""
        resp.set_headers(dict(_HEADERS))
        if not self._is_own(req.get_header("Host") or ""):
            hint = "The page is not known by this host name. If the name is right, add it to zpages::hosts."
            raise falcon.HTTPForbidden(description=hint)
        if self._token is not None and not self._has_token(req.get_header("Authorization") or ""):
            raise falcon.HTTPUnauthorized(description="The page needs zpages::token.", challenges=[_CHALLENGE])

    def _is_own(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
        return name.lower() in self._names or _is_address(name)

    def _has_token(self, authorization: str) -> bool:
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode().partition(":")[2]
            except ValueError:
                return False
        elif scheme.lower() != "bearer":
            return False
        return self._token is not None and hmac.compare_digest(given.strip().encode(), self._token)


def _is_address(host: str) -> bool:
    """Whether it is a numeric address, which no other name can lead to."""
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


class _Page:
    def __init__(self, content: PageContent) -> None:
        self._content = content

    async def on_get(self, req: Request, resp: Response) -> None:
        _fill(resp, page.page(self._content.shown(*_filter_of(req))))

    on_head = on_get


def _filter_of(req: Request) -> tuple[str, str]:
    """What the changes have to contain, and their type."""
    return req.get_param("text") or "", req.get_param("type") or ""


class _Events:
    """Tells a reader which sections have changed, as HTML by the section's id."""

    def __init__(self, content: PageContent) -> None:
        self._content = content

    async def on_get(self, req: Request, resp: Response) -> None:
        if self._content.streams >= _MOST_STREAMS:
            raise falcon.HTTPServiceUnavailable(description="Too many pages are open.", retry_after=RETRY_AFTER)
        resp.set_header("X-Accel-Buffering", "no")  # nginx would wait for more
        resp.sse = self._events(*_filter_of(req))

    async def _events(self, text: str, type_: str) -> AsyncIterator[SSEvent]:
        seen: dict[str, str] = {}
        last = time.monotonic()
        ended = self._content.begin_stream()
        try:
            while not ended.is_set():
                made = self._content.sections(text, type_)
                changed = {name: html for name, html in made.items() if seen.get(name) != html}
                if changed or time.monotonic() >= last + _PING:
                    seen, last = made, time.monotonic()
                    yield SSEvent(json=changed, retry=2000) if changed else SSEvent(event="ping", text="")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), _BETWEEN_EVENTS)
        finally:
            self._content.end_stream(ended)


class _Change:
    """The whole record of a change."""

    async def on_get(self, req: Request, resp: Response) -> None:
        uid = req.get_param("uid") or ""
        entry = next((one for one in journal.changes() if one.uid == uid), None)
        if entry is None:
            raise falcon.HTTPNotFound(description="This change is not in the journal any more, or was never there.")
        _fill(resp, page.record_page(journal_json.change(entry), journal_json.sent(entry)))


class _DeadLetter:
    """The whole content of a dead letter."""

    def __init__(self, content: PageContent) -> None:
        self._content = content

    async def on_get(self, req: Request, resp: Response) -> None:
        number = req.get_param_as_int("id", required=True, min_value=1, max_value=_MOST_ID)
        try:
            found = self._content.dead_letter(number)
        except sqlite3.Error as error:
            raise falcon.HTTPServiceUnavailable(description=f"The queue can't be read: {error}") from error
        if found is None:
            raise falcon.HTTPNotFound(description=f"There is no dead letter {number}.")
        content = decoded(*found)
        shown = content["text"] if "text" in content else json.dumps(content, indent=2)
        _fill(resp, page.dead_letter_page(without_content(found[0]), shown))


class _Actions(ABC):
    """What a button does: takes a form, and answers with a page."""

    def __init__(self, content: PageContent) -> None:
        self._content = content

    async def on_post(self, req: Request, resp: Response) -> None:
        form = await _form(req)
        if not hmac.compare_digest(form.get("token", "").encode(), self._content.token.encode()):
            raise falcon.HTTPForbidden(
                description="This form is from before a restart, or not from this page: go back."
            )
        try:
            _fill(resp, await self._act(form))
        except ControlError as error:
            resp.status = HTTPStatus.CONFLICT
            _fill(resp, page.message_page("Not done", f"{error}."))
        self._content.forget()

    @abstractmethod
    async def _act(self, form: Mapping[str, str]) -> str:
        """Do it; the page that says so."""

    async def _command(self, name: str, **arguments: Any) -> Any:
        # Not in the loop's executor: neither the loop nor the process could end before a command that hangs.
        done = run_in_daemon(lambda: self._content.service.command(name, arguments), "statsig-otel page command")
        return await asyncio.wrap_future(done)


class _DeadLetterActions(_Actions):
    async def _act(self, form: Mapping[str, str]) -> str:
        number, action = form.get("id", ""), form.get("action")
        if not number.isascii() or not number.isdigit() or not 1 <= int(number) <= _MOST_ID:
            raise falcon.HTTPBadRequest(description="id must be the number of a dead letter.")
        selection = {"ids": [int(number)]}
        if action == "replay":
            (found, *_) = (await self._command("dead-letters replay", selection=selection))["dead_letters"] or [None]
            if found is None or found["outcome"] == "gone":
                return page.message_page("Nothing to replay", f"There is no dead letter {number}.")
            if found["outcome"] == "kept":
                return page.message_page("Not replayed", f"Dead letter {number} stays: {found['reason']}.")
            records = counted(found["records"], "record")
            return page.message_page("Replayed", f"Dead letter {number} was replayed: {records} to deliver.")
        if action == "drop" and form.get("sure") != "yes":
            return page.confirm_page(number, self._content.token)
        if action == "drop":
            dropped = (await self._command("dead-letters drop", selection=selection))["ids"]
            said = f"Dead letter {number} was deleted." if dropped else f"There is no dead letter {number}."
            return page.message_page("Dropped" if dropped else "Nothing to drop", said)
        raise falcon.HTTPBadRequest(description="action must be replay or drop.")


class _ExporterActions(_Actions):
    async def _act(self, form: Mapping[str, str]) -> str:
        if form.get("action") != "resume":
            raise falcon.HTTPBadRequest(description="action must be resume.")
        name = form.get("exporter", "")
        state = (await self._command("queue resume", exporter=name))["state"]
        return page.message_page("Tried again", f"{name}, which was {state}, tries again at once.")


class _File:
    """A file of the package."""

    def __init__(self, name: str, type_: str) -> None:
        self._content = files("statsig_otel.plugin.watch").joinpath("static", name).read_bytes()
        self._type = type_

    async def on_get(self, _: Request, resp: Response) -> None:
        resp.content_type, resp.data = self._type, self._content

    on_head = on_get


async def _form(req: Request) -> dict[str, str]:
    """The fields of a form, each once."""
    try:
        async with asyncio.timeout(_BODY_TIMEOUT):
            body = await req.stream.read(_MOST_BODY + 1)
    except TimeoutError:
        raise falcon.HTTPError(HTTPStatus.REQUEST_TIMEOUT, description="The form did not arrive in time.") from None
    if len(body) > _MOST_BODY:
        raise falcon.HTTPContentTooLarge(description="The form is too large.")
    return {key: values[0] for key, values in parse_qs(body.decode(errors="replace")).items()}


def _fill(resp: Response, html: str) -> None:
    resp.content_type = falcon.MEDIA_HTML
    resp.data = html.encode()


def _serialize_error(_: Request, resp: Response, error: falcon.HTTPError) -> None:
    hint = "Nothing is here. The page is at /." if error.status_code == HTTPStatus.NOT_FOUND else error.status
    _fill(resp, page.message_page(error.status, error.description or hint))
