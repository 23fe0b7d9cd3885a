"""`statsig-otel run` as a real process."""

import atexit
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from types import TracebackType
from typing import Self

from tests.e2e.forks import start
from tests.waiting import wait_until

_WAIT = 30.0
"""Seconds for anything that a healthy process does; reached only where it hangs."""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The test's own environment without what would configure the service, and what a test adds.

    A queue without a directory of its own is in one that is gone after the tests.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "STATSIG_"))}
    return {**kept, "STATE_DIRECTORY": str(_state_directory()), **(extra or {})}


def _state_directory() -> Path:
    """A directory for one process, removed when the tests end."""
    directory = TemporaryDirectory(prefix="statsig-otel-test-")
    atexit.register(directory.cleanup)
    return Path(directory.name)


class ServiceProcess:
    """One service. Leaving the block stops it with SIGTERM, and asserts that it ended with its exit code.

    Attributes:
        url: The webhook's URL, of the first receiver.
        output: The lines of standard output so far.
        log: The lines of standard error so far.
    """

    def __init__(
        self,
        config: Path | None = None,
        *args: str,
        env: Mapping[str, str] | None = None,
        exit_code: int = 0,
        folder: Path | None = None,
    ) -> None:
        self._exit_code = exit_code
        self._folder = folder
        self._arguments = ["run", *args]
        if config is not None:
            self._arguments += ["--config", str(config)]
        self._env = environment(env)
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.output: list[str] = []
        self.log: list[str] = []
        self.url = ""

    def has_logged(self, text: str, *, times: int = 1) -> bool:
        """Whether at least so many lines of the log contain a text."""
        return sum(text in line for line in self.log) >= times

    @property
    def page(self) -> str:
        """The URL of the live page. Standard error may be read later than standard output."""
        wait_until(lambda: self.has_logged("Live page: "))
        return next(line.partition("Live page: ")[2] for line in self.log if "Live page: " in line)

    def __enter__(self) -> Self:
        output, output_end = os.pipe()
        errors, errors_end = os.pipe()
        self.process = start(self._arguments, self._env, self._folder, output=output_end, errors=errors_end)
        os.close(output_end)
        os.close(errors_end)
        self._readers = [
            threading.Thread(target=self._read, args=(output, self.output, self._lines)),
            threading.Thread(target=self._read, args=(errors, self.log, None)),
        ]
        for reader in self._readers:
            reader.start()
        try:
            self.url = self.wait_for_output("Webhook URL: ").removeprefix("Webhook URL: ")
        except BaseException as error:
            self.process.kill()
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
            code = self.wait()
        finally:
            self.process.kill()
            self.process.wait()
        if kind is None:
            assert code == self._exit_code, "\n".join(self.log)

    def wait(self) -> int:
        """Wait for the end; the exit code."""
        code = self.process.wait(_WAIT)
        for reader in self._readers:
            reader.join(_WAIT)
        return code

    def wait_for_output(self, start: str) -> str:
        """Wait for a line of standard output that begins so."""
        while (line := self._lines.get(timeout=_WAIT)) is not None:
            if line.startswith(start):
                return line
        self.process.wait(_WAIT)
        for reader in self._readers:
            reader.join(_WAIT)
        raise AssertionError(f"the service ended with {self.process.returncode}:\n" + "\n".join(self.log))

    @staticmethod
    def _read(descriptor: int, lines: list[str], also: "queue.Queue[str | None] | None") -> None:
        with os.fdopen(descriptor) as stream:
            for line in stream:
                lines.append(line.rstrip("\n"))
                if also is not None:
                    also.put(lines[-1])
        if also is not None:
            also.put(None)


def run_to_end(*args: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`statsig-otel` with any arguments, for commands that end by themselves."""
    with TemporaryFile("w+") as output, TemporaryFile("w+") as errors:
        process = start(args, environment(env), None, output=output.fileno(), errors=errors.fileno())
        try:
            code = process.wait(_WAIT)
        finally:
            process.kill()
        output.seek(0)
        errors.seek(0)
        return subprocess.CompletedProcess(args, code, output.read(), errors.read())
