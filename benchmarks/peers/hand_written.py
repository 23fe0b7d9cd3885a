"""What a team would write without this project: a FastAPI application that hands each change to the OpenTelemetry SDK.

It verifies the signature and makes the same record as the service does. It answers 200 while the records are still in
the memory of the SDK's batch processor, and loses them if the process is killed. uvicorn serves it with uvloop and
httptools. The batch processor's queue is large enough for a measurement: with its default of 2,048 records it drops
what does not fit, and still answers 200.

    python -m benchmarks.peers.hand_written PORT BACKEND
"""

import hmac
import json
import sys
import time
from hashlib import sha256
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource

from benchmarks.backlog import SECRET
from benchmarks.measure import HOST
from benchmarks.peers.mapping import attributes_of, title_of, uid_of
from statsig_otel.plugin import DEFAULT_PATH

_TOLERANCE = 300.0
"""Seconds between the signature's timestamp and now."""

_QUEUE_SIZE = 10_000_000


def is_signed(body: bytes, timestamp: str, signature: str) -> bool:
    expected = "v0=" + hmac.new(SECRET.encode(), f"v0:{timestamp}:".encode() + body, sha256).hexdigest()
    if not timestamp.isdigit() or abs(time.time() - int(timestamp) / 1000) > _TOLERANCE:
        return False
    return hmac.compare_digest(expected.encode(), signature.encode())


def record_of(change: dict[str, Any]) -> LogRecord:
    return LogRecord(
        timestamp=change["timestamp"] * 1_000_000,
        observed_timestamp=time.time_ns(),
        severity_number=SeverityNumber.INFO,
        body=title_of(change),
        attributes=attributes_of(change, uid_of(change)),
        event_name="statsig.config_change",
    )


def application(backend: str) -> FastAPI:
    provider = LoggerProvider(Resource({"service.name": "statsig"}), shutdown_on_exit=False)
    exporter = OTLPLogExporter(endpoint=backend, insecure=True)
    provider.add_log_record_processor(BatchLogRecordProcessor(exporter, max_queue_size=_QUEUE_SIZE))
    logger = provider.get_logger("statsig_otel")
    app = FastAPI()

    @app.post(DEFAULT_PATH)
    async def receive(request: Request) -> dict[str, int]:
        body, headers = await request.body(), request.headers
        timestamp, signature = headers.get("x-statsig-request-timestamp", ""), headers.get("x-statsig-signature", "")
        if not is_signed(body, timestamp, signature):
            raise HTTPException(401)
        payload = json.loads(body)
        events = payload["data"] if isinstance(payload, dict) else payload
        changes = [event for event in events if event["eventName"] == "statsig::config_change"]
        for change in changes:
            logger.emit(record_of(change))
        return {"accepted": len(changes), "ignored": len(events) - len(changes)}

    return app


if __name__ == "__main__":
    uvicorn.run(
        application(sys.argv[2]), host=HOST, port=int(sys.argv[1]), loop="uvloop", http="httptools", log_level="error"
    )
