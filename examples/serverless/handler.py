"""A serverless function that receives webhooks, makes log records of them, and puts these into your queue.

`handler` uses the event format of an AWS Lambda function URL, which API Gateway's HTTP APIs use too.
"""

import base64
import json
import os
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

from statsig_otel.exporters import Batch, Receipt, RefusedError
from statsig_otel.plugin import Answer, AnsweredError, Intake, Verifier, sign

Put = Callable[[str, bytes], None]
"""Puts a message of a kind, `record` or `dead-letter`, into your queue, or raises."""

Event = dict[str, Any]


def handle(event: Event, *, secrets: Sequence[str], put: Put, now_ns: int) -> Event:
    """Answer one request.

    Args:
        event: The request in the platform's format.
        secrets: The webhook's signing secrets.
        put: Your queue. The answer is 200 only after the queue has accepted everything.
        now_ns: The current time, in nanoseconds since the epoch.
    """
    if event["requestContext"]["http"]["method"] != "POST":
        return response(HTTPStatus.METHOD_NOT_ALLOWED)
    text = event.get("body") or ""
    body = base64.b64decode(text) if event.get("isBase64Encoded") else text.encode()
    # The platform writes names in lower case, and joins repeated headers with a comma, which is not a valid signature.
    headers = [(name.encode(), value.encode()) for name, value in event.get("headers", {}).items()]
    intake = Intake(verifier=Verifier(secrets))
    try:
        answer = answer_to(intake, headers, body, put=put, now_ns=now_ns)
    except AnsweredError as answered:
        answer = answered.answer
    intake.report(answer)
    print("answered:", answer.status.value, answer.reason)
    return response(answer.status, answer.body, answer.retry_after)


def answer_to(intake: Intake, headers: Sequence[tuple[bytes, bytes]], body: bytes, *, put: Put, now_ns: int) -> Answer:
    """Verify and map a webhook, and put its records into the queue.

    Raises:
        AnsweredError: It is refused before all of it is looked at.
    """
    request = intake.begin(headers, now_ns)
    try:
        request.feed(body)
        outcome = request.finish(complete=True)
        if isinstance(outcome, Answer):
            return outcome
        return request.taken(keep(outcome, put))
    except RefusedError as error:
        return request.refused(error)
    finally:
        request.close()


def keep(batch: Batch, put: Put) -> Receipt:
    """Put the records into the queue, and what could not be mapped: the body is Statsig's, and this is the only copy.

    Raises:
        RefusedError: The queue failed: after any error, a 2xx would lose the messages.
    """
    messages = [("record", record) for change in batch.changes for record in change.records]
    messages += [("dead-letter", invalid.text) for invalid in batch.invalid]
    try:
        for kind, message in messages:
            put(kind, message)
    except Exception as error:
        raise RefusedError(f"the queue failed: {error}", reason="queue_failed") from error
    return Receipt(len(batch.changes))


def response(status: HTTPStatus, body: object = None, retry_after: int | None = None) -> Event:
    """The response in the platform's format."""
    headers = {"Content-Type": "application/json"}
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    return {"statusCode": status.value, "headers": headers, "body": json.dumps(body)}


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
    print("returned:", handler(request, None))
