"""A real OpenTelemetry Collector: built with the Collector's own builder, kept between runs, and started.

The binary lies in the user's cache directory ($XDG_CACHE_HOME, else ~/.cache), under
statsig-otel-tests/otelcol-VERSION, with the manifest that it was built from. Building takes a few minutes, and needs
Go, some 1.2 GB in Go's own caches, and the Go modules.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ruamel.yaml import YAML

from tests.e2e.processes import Collector, Ports, Process, Protocol, clean_environment

_HERE = Path(__file__).parent
_MANIFEST = _HERE / "otelcol-builder.yaml"
_CONFIG = _HERE / "otelcol-config.yaml"
_BUILD_TIMEOUT = 20 * 60.0
_LAST_LINES = 12

TEST_TIMEOUT = 30 * 60.0
"""Seconds for a test that may have to build first, or to wait for another worker that builds."""


class UnavailableError(Exception):
    """This machine lacks a program, or can't get what it needs."""


def build(manifest_file: Path = _MANIFEST) -> Path:
    """The Collector's binary, built where that has not been done yet. Several processes may ask at a time.

    Args:
        manifest_file: What to build. Manifests of one version differ in their file's name and in `dist.name`.

    Raises:
        UnavailableError: There is no Go, or the modules can't be had.
        AssertionError: The modules are there, but don't compile.
    """
    manifest = manifest_file.read_bytes()
    dist: dict[str, str] = YAML(typ="safe").load(manifest)["dist"]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "statsig-otel-tests" / f"otelcol-{dist['version']}"
    binary = folder / dist["name"]
    built_from = folder / manifest_file.name
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock"):
        if not (binary.exists() and built_from.exists() and built_from.read_bytes() == manifest):
            built_from.unlink(missing_ok=True)
            with TemporaryDirectory(prefix="build-", dir=folder) as name:
                _build(manifest_file, Path(name), version=dist["version"])
                Path(name, "build", dist["name"]).replace(binary)
            built_from.write_bytes(manifest)
    return binary


def _build(manifest_file: Path, folder: Path, *, version: str) -> None:
    """Run the builder in two steps, since only the first may fail for what is not the project's fault."""
    go = shutil.which("go")
    if go is None:
        raise UnavailableError("go is not on the PATH")
    builder = [go, "run", f"go.opentelemetry.io/collector/cmd/builder@v{version}", "--config", str(manifest_file)]
    deadline = time.monotonic() + _BUILD_TIMEOUT
    ok, output = run_until([*builder, "--skip-compilation"], folder, deadline)
    if not ok:
        raise UnavailableError(f"the Go modules can't be had:\n{output}")
    ok, output = run_until([*builder, "--skip-generate", "--skip-get-modules"], folder, deadline)
    assert ok, f"the Collector can't be built:\n{output}"


def run_until(arguments: list[str], folder: Path, deadline: float, **variables: str) -> tuple[bool, str]:
    """Whether a command succeeds before the deadline, and its last lines. What it started ends with it."""
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            arguments,
            cwd=folder,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        how = ""
        try:
            process.wait(deadline - time.monotonic())
        except subprocess.TimeoutExpired:
            how = f"\nit took more than {_BUILD_TIMEOUT / 60:.0f} minutes"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    lines = log.read_text(errors="replace").splitlines()
    return process.returncode == 0, "\n".join(lines[-_LAST_LINES:]) + how


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def otelcol(
    binary: Path, *, protocol: Protocol, backend: str, folder: Path, ports: Ports | None = None
) -> Iterator[Collector]:
    """Run the Collector: OTLP over gRPC and HTTP in, OTLP out.

    Args:
        binary: Of `build`.
        protocol: What it exports over.
        backend: Where it exports to, as host:port.
        folder: It leaves nothing there; taken because others do.
        ports: Where it listens; free ones by default.
    """
    variables = {"BACKEND": backend, "BACKEND_EXPORTER": f"otlp_{protocol}"}
    if ports is not None:
        variables |= {"OTLP_GRPC_PORT": str(ports.grpc), "OTLP_HTTP_PORT": str(ports.http)}
    with start(binary, _CONFIG, **variables) as collector:
        yield collector


@contextmanager
def start(binary: Path, config: Path, **variables: str) -> Iterator[Collector]:
    """Run the Collector with a configuration file and some environment variables.

    How it ends is not looked at: it says that it is ready a moment before it takes care of SIGTERM, and one that comes
    in between just ends it.
    """
    with Process([str(binary), "--config", str(config)], clean_environment(**variables)) as process:
        process.wait_for("Everything is ready")
        yield Collector(process, Ports(grpc=_port(process, "GRPC"), http=_port(process, "HTTP")))


def _port(process: Process, server: str) -> int:
    return int(process.wait_for(rf'Starting {server} server.*"endpoint": "127\.0\.0\.1:(\d+)"')[1])
