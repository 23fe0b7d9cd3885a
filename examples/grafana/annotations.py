"""Posts each config change to Grafana as an annotation: an exporter for a backend that takes one record at a time.

Grafana does not recognise an annotation that it already has. So each call posts one and reports that, and a crash can
repeat only the one that was under way.
"""

import json
import os
import signal
from typing import Final

import urllib3
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from statsig_otel import Service
from statsig_otel.exporters import Blocked, Delivered, Outcome, Rejected, RetryLater, log_records

_REASON: Final = 200
"""The most characters of an answer that a reason contains."""


class Annotations:
    """Implements `statsig_otel.exporters.Exporter`.

    Args:
        url: Grafana's URL, such as `https://grafana.example.com`.
        token: A service account's token with the permission to create annotations.
    """

    def __init__(self, url: str, token: str) -> None:
        self._url = f"{url.rstrip('/')}/api/annotations"
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._client = urllib3.PoolManager(retries=False)

    def start(self) -> None:
        """The first request connects."""

    def send(self, payload: bytes, count: int, timeout: float) -> Outcome:
        """Post the first record. The rest of the batch comes with the next call."""
        outcome = self._post(next(log_records(payload)), timeout)
        return Delivered(only=[0]) if isinstance(outcome, Delivered) and count > 1 else outcome

    def shutdown(self) -> None:
        """Close the connection. A request in progress ends with its timeout."""
        self._client.clear()

    def _post(self, record: LogRecord, timeout: float) -> Outcome:
        try:
            answer = self._client.request(
                "POST", self._url, body=json.dumps(annotation(record)), headers=self._headers, timeout=timeout
            )
        except urllib3.exceptions.HTTPError as error:
            return RetryLater(f"no answer: {type(error).__name__}")
        reason = f"{answer.status} {answer.data[:_REASON].decode(errors='replace')}".strip()
        match answer.status:
            case status if 200 <= status < 300:  # noqa: PLR2004 - the class of success
                return Delivered()
            case 400 | 413 | 422:
                return Rejected(reason)
            case 408 | 425 | 429 | 502 | 503 | 504:
                return RetryLater(reason)
            case 500:
                return RetryLater(reason, may_be_data=True)
            case _:
                return Blocked(reason)


def annotation(record: LogRecord) -> dict[str, object]:
    """What Grafana shows: the change's title at its time, with tags to select it by."""
    texts = {one.key: one.value.string_value for one in record.attributes if one.value.string_value}
    tags = ["statsig", texts.get("feature_flag.key"), texts.get("deployment.environment.name")]
    return {
        "time": (record.time_unix_nano or record.observed_time_unix_nano) // 1_000_000,
        "text": record.body.string_value,
        "tags": [tag for tag in tags if tag],
    }


def main() -> None:
    """Run until SIGTERM or Ctrl-C."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ends := {signal.SIGTERM, signal.SIGINT})
    receivers = {"statsig": {"endpoint": "localhost:8080", "signing_secrets": [os.environ["STATSIG_SIGNING_SECRET"]]}}
    exporters = {"grafana": Annotations(os.environ["GRAFANA_URL"], os.environ["GRAFANA_TOKEN"])}
    with Service(receivers=receivers, exporters=exporters, directory="statsig-queue") as service:
        print("Webhook URL:", service.urls["statsig"])
        signal.sigwait(ends)


if __name__ == "__main__":
    main()
