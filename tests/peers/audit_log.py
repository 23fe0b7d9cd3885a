"""Statsig's audit log on 127.0.0.1, by its published description: a server with given entries and faults."""

import json
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from tests.peers.certs import Certificate
from tests.peers.http_server import LocalServer

KEY = "console-0123456789abcdef"
PATH = "/console/v1/audit_logs"

Anchor = Literal["included", "left out", "ignored"]
"""What a server makes of `latestID`, since that is not documented."""


def audit_entry(number: int, second: int, name: str = "gate", **others: object) -> dict[str, Any]:
    """An entry as the log has it, with the members of the published examples."""
    moment = datetime.fromtimestamp(second, UTC)
    return {
        "id": f"id{number:020d}",
        "name": name,
        "changeLog": "Updated Gate",
        "actionType": "gate_update",
        "date": f"{moment:%a %b %d %Y}",
        "time": f"{moment:%H:%M:%S} GMT+0000 (Coordinated Universal Time)",
        "updatedBy": "Ada",
        "updatedByUserID": "u1",
        "modifierEmail": "ada@example.com",
        "changes": {},
        "tags": [],
        **others,
    }


class AuditLogServer(LocalServer):
    """The server.

    Attributes:
        entries: The entries of the log, in any order.
        asked: The query of each request.
        others: The method of each request that is not a GET.
        faults: Each is called with the handler instead of one answer, the first one first.
        after: Called after each answer, for example to add an entry between two pages.
        anchor: What it makes of `latestID`.
        most: The most entries of a page, whatever limit is asked for.
    """

    def __init__(
        self, *entries: dict[str, Any], certificate: Certificate | None = None, folder: Path | None = None
    ) -> None:
        self.entries = list(entries)
        self.asked: list[dict[str, str]] = []
        self.others: list[str] = []
        self.faults: list[Callable[[BaseHTTPRequestHandler], None]] = []
        self.after: Callable[[], None] = lambda: None
        self.anchor: Anchor = "included"
        self.most = 1000
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                query = {key: values[-1] for key, values in parse_qs(url.query, strict_parsing=True).items()}
                server.asked.append(query)
                if server.faults:
                    server.faults.pop(0)(self)
                elif self.headers.get("STATSIG-API-KEY") != KEY:
                    answer(self, 401, {"status": 401, "message": f"Invalid key {self.headers.get('STATSIG-API-KEY')}"})
                elif url.path != PATH:
                    answer(self, 404, {"status": 404, "message": "Not found"})
                else:
                    answer(self, 200, server.page(query))
                    server.after()

            def __getattr__(self, name: str) -> Any:
                if name.startswith("do_"):
                    server.others.append(name.removeprefix("do_"))
                raise AttributeError(name)

        tls = None
        if certificate is not None:
            assert folder is not None
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(*certificate.write(folder, "audit_log"))
        super().__init__(Handler, tls)

    @property
    def url(self) -> str:
        return self.origin + PATH

    def page(self, query: dict[str, str]) -> dict[str, Any]:
        """A page of the log, with links that have no scheme."""

        def moment(entry: dict[str, Any]) -> datetime:
            return datetime.strptime(f"{entry['date']} {entry['time'][:17]}", "%a %b %d %Y %H:%M:%S GMT%z")

        found = sorted(self.entries, key=moment, reverse=query.get("sortOrder") == "desc")
        begin, end = query.get("startDate", "0001-01-01"), query.get("endDate", "9999-12-31")
        found = [entry for entry in found if begin <= str(moment(entry).date()) <= end]
        ids = [entry["id"] for entry in found]
        if query.get("latestID") in ids and self.anchor != "ignored":
            found = found[ids.index(query["latestID"]) + (self.anchor == "left out") :]
        size, number = min(int(query.get("limit", 10)), self.most), int(query.get("page", 1))
        return {
            "message": "Audit logs listed successfully.",
            "data": found[(number - 1) * size : number * size],
            "pagination": {
                "itemsPerPage": size,
                "pageNumber": number,
                "totalItems": len(found),
                "nextPage": f"statsigapi.net/console/v1/audit_logs?page={number + 1}&limit={size}",
                "previousPage": None,
                "all": "/console/v1/audit_logs",
            },
        }


def answer(handler: BaseHTTPRequestHandler, status: int, body: object, **headers: str) -> None:
    """Answer with JSON."""
    content = json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json; charset=utf-8")
    handler.send_header("Content-Length", str(len(content)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(content)


def failing(status: int, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    """A fault: this status, with a message."""
    return lambda handler: answer(handler, status, {"status": status, "message": "not now"}, **headers)


def cut(handler: BaseHTTPRequestHandler) -> None:
    """A fault: the body ends early, and with it the connection."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"data": [')
    handler.close_connection = True


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    """A fault: the connection ends without an answer."""
    handler.close_connection = True
