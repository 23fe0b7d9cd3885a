"""Services for the tests of their life and of their live page."""

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from statsig_otel.exporters import Delivered, Outcome, RetryLater
from statsig_otel.plugin import DEFAULT_PATH, Service, StatsigReceiverSettings, sign
from tests.plugin.http_client import Address, Response, exchange, request

SECRET = "webhook-0123456789abcdef"


def page_config(
    folder: Path,
    exporters: Mapping[str, object],
    *,
    receivers: Mapping[str, object] | None = None,
    storage: Mapping[str, object] | None = None,
    **zpages: object,
) -> Path:
    """The file of a service with a queue and a live page. All of its servers have free ports, unless others are given.

    Args:
        folder: Where to write it; the queue is there too.
        exporters: The settings of the exporters, by id.
        receivers: Those of the receivers; by default there is one.
        storage: More settings of the queue.
        zpages: Settings of the page.
    """
    accepting = receivers or {"statsig": {"endpoint": "127.0.0.1:0", "signing_secrets": [SECRET]}}
    configuration = {
        "receivers": accepting,
        "exporters": exporters,
        "extensions": {
            "file_storage": {"directory": str(folder / "queue"), "min_free_bytes": 0, **(storage or {})},
            "zpages": {"endpoint": "127.0.0.1:0", **zpages},
        },
        "service": {
            "extensions": ["file_storage", "zpages"],
            "pipelines": {"logs": {"receivers": [*accepting], "exporters": [*exporters]}},
        },
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(configuration))
    return path


class Keeper:
    """An exporter of one's own: keeps what it is sent, and does as it is told.

    Attributes:
        names: The flags of the records that it took, in order.
        started: How often it was started.
        stopped: How often it was shut down.
    """

    def __init__(self, *, hold: bool = False, heed: bool = True) -> None:
        self.names: list[str] = []
        self.started = self.stopped = 0
        self.sending = threading.Event()
        self.go_on = threading.Event()
        self._heed = heed
        if not hold:
            self.go_on.set()

    def start(self) -> None:
        self.started += 1

    def send(self, payload: bytes, count: int, timeout: float) -> Outcome:
        self.sending.set()
        self.go_on.wait(60)
        if self._heed and self.stopped:
            return RetryLater("shutting down")
        self.names += names_in(payload)
        return Delivered()

    def shutdown(self) -> None:
        self.stopped += 1
        if self._heed:
            self.go_on.set()


def names_in(payload: bytes) -> list[str]:
    message = ExportLogsServiceRequest.FromString(payload)
    return [
        next(one.value.string_value for one in record.attributes if one.key == "feature_flag.key")
        for resource in message.resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    ]


def service(directory: Path, exporters: Any, **options: Any) -> Service:
    """A service with one receiver, on a free port unless it does not listen."""
    keys = {} if options.get("listen") is False else {"endpoint": "127.0.0.1:0"}
    settings = StatsigReceiverSettings(signing_secrets=[SECRET], **{**keys, **options.pop("receiver", {})})
    return Service(
        receivers={"statsig": settings}, exporters=exporters, directory=directory, min_free_bytes=0, **options
    )


def change_body(name: str) -> bytes:
    change = {
        "eventName": "statsig::config_change",
        "timestamp": 1739400185198,
        "metadata": {"type": "Gate", "name": name, "action": "updated"},
    }
    return json.dumps({"data": [change]}).encode()


def webhook(name: str, path: str = DEFAULT_PATH, *, secret: str = SECRET) -> bytes:
    """The bytes of a signed request with one change."""
    return signed_request(change_body(name), path, secret=secret)


def signed_request(body: bytes, path: str = DEFAULT_PATH, *, secret: str = SECRET) -> bytes:
    headers = sign(body, secret=secret, timestamp_ms=time.time_ns() // 1_000_000)
    return request(body, path=path, headers=headers)


def address_of(running: Service) -> Address:
    parts = urlsplit(running.urls["statsig"])
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def post_change(running: Service, name: str, *, secret: str = SECRET) -> Response:
    return exchange(address_of(running), webhook(name, secret=secret))
