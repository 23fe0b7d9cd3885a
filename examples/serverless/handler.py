"""A serverless function behind a URL: the platform's HTTP, your own queue, and of statsig-otel only the pure part.

`handler` takes and gives the events of an AWS Lambda function URL; API Gateway's HTTP APIs use the same form.
"""

import base64
import json
import os
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

from statsig_otel.plugin import (
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    MalformedBodyError,
    Mapper,
    UnauthorizedError,
    parse,
    parse_url_verification,
    sign,
    verify,
)

Put = Callable[[str, bytes], None]
"""Puts a message of a kind, `record` or `dead-letter`, into your queue; raises where it can't."""

Event = dict[str, Any]
mapper = Mapper()


def handle(event: Event, *, secrets: Sequence[str], put: Put, now_ns: int) -> Event:
    """Answer one request.

    Args:
        event: The request, as the platform gives it.
        secrets: The webhook's signing secrets.
        put: Your queue. A 200 is answered only after it has taken everything.
        now_ns: The time now, in nanoseconds since the epoch.
    """
    text = event.get("body") or ""
    body = base64.b64decode(text) if event.get("isBase64Encoded") else text.encode()
    # Names are in lower case here, and a repeated header is one value with a comma: that is no signature.
    headers = event.get("headers", {})
    if event["requestContext"]["http"]["method"] != "POST":
        return answer(405)
    if code := parse_url_verification(body):  # unsigned: it comes before there is a secret
        return answer(200, verification_code=code)
    try:
        verify(
            body,
            signature=headers.get(SIGNATURE_HEADER.lower(), ""),
            timestamp=headers.get(TIMESTAMP_HEADER.lower(), ""),
            secrets=secrets,
            now_ms=now_ns // 1_000_000,
        )
        payload = parse(body)
    except UnauthorizedError as error:
        print("refused:", error.reason)
        return answer(401)
    except MalformedBodyError as error:
        print("not understood:", error)
        return keep([("dead-letter", body)], put) or answer(400)  # it is Statsig's, and the only copy
    mapped = mapper.map(payload, now_ns)
    messages = [("record", record) for change in mapped.changes for record in change.records]
    messages += [("dead-letter", invalid.text) for invalid in mapped.invalid]
    counts = {"accepted": len(mapped.changes), "ignored": mapped.ignored, "invalid": len(mapped.invalid)}
    return keep(messages, put) or answer(200, **counts)


def keep(messages: Sequence[tuple[str, bytes]], put: Put) -> Event | None:
    """Put the messages into the queue. Where that fails, what to answer: later."""
    try:
        for kind, message in messages:
            put(kind, message)
    except Exception as error:  # noqa: BLE001 - whatever it is, a 2xx would be a loss
        print("the queue does not take it:", error)
        return answer(503)
    return None


def answer(status: int, **body: object) -> Event:
    """The response in the platform's form."""
    headers = {"Content-Type": "application/json"}
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = "10"
    return {"statusCode": status, "headers": headers, "body": json.dumps(body)}


def put_into_queue(kind: str, message: bytes) -> None:
    """Replace this: by SQS's `send_message`, Pub/Sub's `publish`, a row in your database.

    A record is a serialised `ExportLogsServiceRequest`: whoever takes it out of the queue posts it to a Collector's
    /v1/logs as it is, with the Content-Type application/x-protobuf.
    """
    print("queued:", kind, len(message), "bytes")


def handler(event: Event, context: object) -> Event:  # noqa: ARG001 - the platform's signature
    """What the platform calls."""
    secrets = os.environ["STATSIG_SIGNING_SECRET"].split()
    return handle(event, secrets=secrets, put=put_into_queue, now_ns=time.time_ns())


if __name__ == "__main__":
    secret = os.environ.setdefault("STATSIG_SIGNING_SECRET", "webhook-try-out")
    change = {
        "eventName": "statsig::config_change",
        "timestamp": 1739400185198,
        "metadata": {"type": "Gate", "name": "layout_v2", "action": "updated"},
    }
    sample = json.dumps({"data": [change]})
    signature = sign(sample.encode(), secret=secret, timestamp_ms=time.time_ns() // 1_000_000)
    request = {
        "requestContext": {"http": {"method": "POST"}},
        "headers": {name.lower(): value for name, value in signature.items()},
        "body": sample,
    }
    print("answered:", handler(request, None))
