"""A serverless function that receives webhooks with the pure part of statsig-otel and puts records into your queue.

`handler` uses the event format of an AWS Lambda function URL, which API Gateway's HTTP APIs use too.
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
"""Puts a message of a kind, `record` or `dead-letter`, into your queue, or raises."""

Event = dict[str, Any]
mapper = Mapper()


def handle(event: Event, *, secrets: Sequence[str], put: Put, now_ns: int) -> Event:
    """Answer one request.

    Args:
        event: The request in the platform's format.
        secrets: The webhook's signing secrets.
        put: Your queue. The answer is 200 only after the queue has accepted everything.
        now_ns: The current time, in nanoseconds since the epoch.
    """
    text = event.get("body") or ""
    body = base64.b64decode(text) if event.get("isBase64Encoded") else text.encode()
    # The platform writes names in lower case, and joins repeated headers with a comma, which is not a valid signature.
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
        print("malformed:", error)
        return keep([("dead-letter", body)], put) or answer(400)  # the body is Statsig's, and this is the only copy
    mapped = mapper.map(payload, now_ns)
    messages = [("record", record) for change in mapped.changes for record in change.records]
    messages += [("dead-letter", invalid.text) for invalid in mapped.invalid]
    counts = {"accepted": len(mapped.changes), "ignored": mapped.ignored, "invalid": len(mapped.invalid)}
    return keep(messages, put) or answer(200, **counts)


def keep(messages: Sequence[tuple[str, bytes]], put: Put) -> Event | None:
    """Put the messages into the queue. If that fails, return the answer 503."""
    try:
        for kind, message in messages:
            put(kind, message)
    except Exception as error:  # noqa: BLE001 - after any error, a 2xx would lose the messages
        print("the queue failed:", error)
        return answer(503)
    return None


def answer(status: int, **body: object) -> Event:
    """The response in the platform's format."""
    headers = {"Content-Type": "application/json"}
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = "10"
    return {"statusCode": status, "headers": headers, "body": json.dumps(body)}


def put_into_queue(kind: str, message: bytes) -> None:
    """Replace this with SQS's `send_message`, Pub/Sub's `publish`, or an insert into your database.

    A record is a serialised `ExportLogsServiceRequest`. The consumer of your queue posts it unchanged to a Collector's
    /v1/logs, with the Content-Type application/x-protobuf.
    """
    print("queued:", kind, len(message), "bytes")


def handler(event: Event, context: object) -> Event:  # noqa: ARG001 - the platform's signature
    """The function that the platform calls."""
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
