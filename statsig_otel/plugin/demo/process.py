"""A child process of the demo: its output is read all the time, and it ends with the demo."""

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
class Said:
    """A child wrote a line, to its standard output or its standard error."""

    child: "Child"
    line: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A child has ended."""

    child: "Child"


class Child:
    """A process in a group of its own: a Ctrl-C at the terminal is for the demo, which ends its children in order.

    Args:
        name: What people call it.
        arguments: The program and its arguments.
        environment: The whole environment.
        tell: Called with what happens, from a thread of this object's.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        tell: Callable[[Said | Ended], None],
    ) -> None:
        self.name = name
        self._arguments = arguments
        self._environment = environment
        self._tell = tell
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._process: subprocess.Popen[str] | None = None
        self._reader = Thread(target=self._read, name=f"output of {name}", daemon=True)

    def start(self) -> None:
        """Start the process.

        Raises:
            OSError: It can't be started on this machine.
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
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def last_lines(self) -> str:
        """Whether it has ended, and what it wrote last."""
        code = self._process.poll() if self._process is not None else None
        if code is not None:
            self._reader.join(_GRACE)  # its last words may still be on their way
        how = "is running" if code is None else f"ended with exit code {code}"
        return "\n".join([f"the {self.name} {how}; its last lines:", *(f"    {line}" for line in self._last_lines)])

    def stop(self) -> None:
        """End it, by force where it does not go in time. Safe to call twice, and without a `start`."""
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
                self._tell(Said(self, shown))
        self._process.wait()
        self._tell(Ended(self))
