"""Runs the whole chain on this machine: nginx, three replicas, three Apache Kafka brokers, two Collectors, a backend.

A webhook comes each second, and each change that the backend gets is printed. What ends is started again, so kill what
you like. With --once it kills one of each kind itself, and ends once everything that was acknowledged has arrived.

    python examples/kafka/run.py [--once]
"""

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

from tests.e2e.kafka_chain import Chain
from tests.e2e.kafka_kills import PATIENCE, ReceivedRecords, Sender
from tests.e2e.otelcol import UnavailableError
from tests.e2e.processes import Restartable
from tests.e2e.statsig_client import SECRET, load
from tests.peers.otlp_servers import HttpSink

WITHOUT = """
!! THE CHAIN CAN'T RUN ON THIS MACHINE: {error}
   It needs Java 17 or newer, Maven, nginx and Go, on the PATH.
   Debian: apt-get install default-jre-headless maven nginx, and Go from https://go.dev/dl
"""


def say(text: str) -> None:
    """Print a line with the time."""
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", flush=True)


def interrupt(*_: object) -> NoReturn:
    """End what is done, once: while all processes are being stopped, another Ctrl-C would leave some behind."""
    let_interrupt(signal.SIG_IGN)
    raise KeyboardInterrupt


def let_interrupt(handler: Callable[..., object] | signal.Handlers = interrupt) -> None:
    """Let Ctrl-C, and SIGTERM, interrupt the program, or call another handler."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


@contextlib.contextmanager
def supervised(chain: Chain) -> Iterator[None]:
    """Start again what ends during the block."""
    is_over = threading.Event()

    def start_again(part: Restartable) -> None:
        say(f"{part.name} is gone")
        part.kill()
        try:
            part.start()
        except AssertionError:  # it was killed once more
            return
        say(f"{part.name} runs again, pid {part.pid}")

    def supervise() -> None:
        while not is_over.wait(1):
            for part in chain.parts:
                if not part.is_running:
                    start_again(part)

    supervisor = threading.Thread(target=supervise)
    supervisor.start()
    try:
        yield
    finally:
        is_over.set()
        supervisor.join()


class Shown:
    """What the backend has got, line by line."""

    def __init__(self, sink: HttpSink, sender: Sender) -> None:
        self._delivered = ReceivedRecords(sink)
        self._sender = sender
        self._printed: set[str] = set()

    def print_new(self) -> bool:
        """Print what has come since the last call. Whether all that was acknowledged has arrived."""
        acknowledged = set(self._sender.acknowledged)
        for request in self._delivered.look():
            for record in request.records:
                values = {one.key: one.value.string_value for one in record.attributes}
                change = values["log.record.uid"]
                again = ", again" if change in self._printed else ""
                self._printed.add(change)
                say(f"delivered: {values.get('change_event.title', '')}, uid {change}{again}")
        return acknowledged <= self._delivered.uids.keys()

    def summary(self) -> str:
        """How many changes there were."""
        uids = self._delivered.uids
        again = sum(count > 1 for count in uids.values())
        refused = sum(count for status, count in self._sender.statuses.items() if status != HTTPStatus.OK)
        return (
            f"{refused} webhooks were not answered with 200, and sent again; "
            f"{len(self._sender.acknowledged)} changes were acknowledged; {len(uids)} delivered, {again} of them again"
        )


def watch(shown: Shown, seconds: float) -> None:
    """Print what comes for a while."""
    latest = time.monotonic() + seconds
    while time.monotonic() < latest:
        shown.print_new()
        time.sleep(0.1)


def kill_one_of_each(chain: Chain, shown: Shown) -> None:
    """Kill a replica, a broker and a Collector, one after the other, and wait each time until it runs again."""
    for part in (chain.replicas[0], chain.kafka.brokers[0], chain.consumers[0]):
        watch(shown, 5)
        pid = part.pid
        say(f"killing {part.name}, pid {pid}")
        os.kill(pid, signal.SIGKILL)
        latest = time.monotonic() + PATIENCE
        while not part.is_running or part.pid == pid:
            if time.monotonic() > latest:
                raise TimeoutError(f"{part.name} does not start again")
            watch(shown, 0.5)
    watch(shown, 5)


def run(*, once: bool) -> bool:
    """Run the chain, until Ctrl-C or until one of each kind was killed. Whether all that was acknowledged arrived."""
    say("Starting. The first time Kafka is fetched (44 MB) and the Collector is built, which takes some minutes.")
    with TemporaryDirectory() as folder, HttpSink() as sink, Chain(Path(folder), sink.url) as chain:
        for part in chain.parts:
            say(f"{part.name} runs, pid {part.pid}")
        say(f"webhook URL: {chain.url}, signing secret: {SECRET}")
        sender = Sender(1, chain.url, pause=1.0)
        shown = Shown(sink, sender)
        with supervised(chain):
            with load([sender]), contextlib.suppress(KeyboardInterrupt):
                if once:
                    kill_one_of_each(chain, shown)
                else:
                    watch(shown, float("inf"))
            let_interrupt()
            say("Ending, once all that was acknowledged has arrived. Ctrl-C ends it at once.")
            latest = time.monotonic() + PATIENCE
            while not (all_arrived := shown.print_new()) and time.monotonic() < latest:
                time.sleep(0.1)
        say(shown.summary())
    return all_arrived


def main() -> int:
    """Run the chain, and return 1 if it can't be run, or if a change is missing at the end."""
    parser = argparse.ArgumentParser(description="Run the whole chain with Kafka on this machine.")
    parser.add_argument("--once", action="store_true", help="kill one of each kind, and end")
    options = parser.parse_args()
    let_interrupt()
    try:
        if run(once=options.once):
            return 0
        print("!! SOME THAT WERE ACKNOWLEDGED ARE MISSING", file=sys.stderr)
    except UnavailableError as error:
        print(WITHOUT.format(error=error), file=sys.stderr)
    except (AssertionError, TimeoutError) as error:
        print(f"!! {error}", file=sys.stderr)
    except KeyboardInterrupt:
        say("Stopped.")
    return 1


if __name__ == "__main__":
    sys.exit(main())
