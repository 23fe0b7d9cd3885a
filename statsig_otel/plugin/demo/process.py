"""Runs a child process of the demo: reads its output in a thread and stops the process with the demo."""

import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Thread
from typing import Final

from statsig_otel.exporters.terminal import printable

_GRACE: Final = 10.0
_LAST_LINES: Final = 15


@dataclass(frozen=True, slots=True)
class Output:
    """A child process wrote a line to its standard output or standard error."""

    child: "Child"
    line: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A child process has ended."""

    child: "Child"


class Child:
    """A process in its own process group: Ctrl-C reaches only the demo, which then stops its children in order.

    `on_event` is called in this object's thread with each line of output, and when the process ends.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        on_event: Callable[[Output | Ended], None],
    ) -> None:
        self.name = name
        self._arguments = arguments
        self._environment = environment
        self._on_event = on_event
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._process: subprocess.Popen[str] | None = None
        self._reader = Thread(target=self._read, name=f"output of {name}", daemon=True)

    def start(self) -> None:
        """Start the process.

        Raises:
            OSError: The program can't be started on this machine.
        """
        self._process = subprocess.Popen(  # noqa: S603 - the demo's own arguments, and no shell
            self._arguments,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            process_group=0,
        )
        self._reader.start()

    @property
    def is_running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def last_lines(self) -> str:
        """A message with the state of the process and its last lines of output."""
        code = None if self._process is None else self._process.poll()
        if code is not None:
            self._reader.join(_GRACE)  # until the last lines are read
        state = "is running" if code is None else f"ended with exit code {code}"
        return "\n".join([f"the {self.name} {state}; its last lines:", *(f"    {line}" for line in self._last_lines)])

    def stop(self) -> None:
        """Terminate the process, and kill it after 10 s. Safe to call twice, and without `start`."""
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._reader.join(_GRACE)

    def _read(self) -> None:
        if self._process is None or self._process.stdout is None:
            return
        with self._process.stdout as output:
            for line in output:
                shown = printable(line.rstrip())
                self._last_lines.append(shown)
                self._on_event(Output(self, shown))
        self._process.wait()
        self._on_event(Ended(self))
