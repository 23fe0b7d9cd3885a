"""Checks whether the brokers of a Kafka exporter answer, and have its topic. Writes and creates nothing."""

import threading

from statsig_otel.exporters.kafka.settings import KafkaSettings
from statsig_otel.plugin.doctor.finding import Finding


class BrokersProbe(threading.Thread):
    """Checks the brokers of one exporter, in a thread that is abandoned if nothing comes back.

    Unlike other exporters' endpoints, brokers tell nothing to whom they don't know, so the user of `auth` logs in.

    Args:
        exporter: The exporter's id.
        settings: Its settings.
        timeout: Seconds for the answer.

    Attributes:
        finding: The result.
        ahead: None: brokers don't tell their time.
    """

    def __init__(self, exporter: str, settings: KafkaSettings, timeout: float) -> None:
        super().__init__(name=f"probe {exporter}", daemon=True)
        self.exporter: str = f"exporters::{exporter}"
        self.ahead: float | None = None
        self._settings = settings
        self._timeout = timeout
        self.finding: Finding = Finding(self.exporter, "failed", "no answer from the brokers", "check the name service")

    def run(self) -> None:
        """Ask the brokers."""
        try:
            from statsig_otel.exporters.kafka.connection import check_brokers  # noqa: PLC0415 - the library is optional

            detail, fault = check_brokers(self._settings, self._timeout)
        except ImportError as error:
            self.finding = Finding(self.exporter, "unknown", f"can't be checked: {error}")
        except (OSError, ValueError) as error:
            hint = "check brokers, and the firewalls"
            self.finding = Finding(self.exporter, "failed", str(error), hint)
        else:
            if fault is None:
                self.finding = Finding(self.exporter, "ok", detail)
            else:
                self.finding = Finding(self.exporter, "warning", f"{detail}, and {fault.message}", fault.hint)
