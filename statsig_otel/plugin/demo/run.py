"""Runs the demo: starts the processes, sends the sample day, and shows what arrives.

One thread makes all decisions. Records, the children's output and signals reach it through one queue of events.
"""

import json
import os
import secrets
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory
from typing import Final, Literal, TextIO

from statsig_otel.plugin.demo.collector import HOW_TO_GET, Collector, find_binary
from statsig_otel.plugin.demo.day import Delivery, sample_day
from statsig_otel.plugin.demo.process import Child, Ended, Output
from statsig_otel.plugin.demo.sink import Arrived, backend
from statsig_otel.plugin.demo.table import Table
from statsig_otel.plugin.demo.tally import Tally
from statsig_otel.plugin.demo.webhook_client import SendError, WebhookClient
from statsig_otel.plugin.record.record import EVENT_NAME
from statsig_otel.plugin.settings import SECRET_VARIABLE

OtlpProtocol = Literal["grpc", "http/protobuf"]

_URL_LINE: Final = "Webhook URL: "
_PAGE_LINE: Final = "Live page: "
_START_TIMEOUT: Final = 30.0
_ARRIVAL_TIMEOUT: Final = 30.0
_PAUSE: Final = 0.3  # seconds between two deliveries, so that the table can be read as it grows
_ATTEMPTS: Final = 3
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_GOOD, _BAD, _LOUD, _QUIET = "32", "31", "1;33", "2"  # SGR parameters: green, red, bold yellow, faint

_CONFIGURATION: Final = """\
receivers:
  statsig:
    endpoint: 127.0.0.1:0
    signing_secrets: ["${{env:{variable}}}"]
exporters:
  {exporter}
extensions:
  file_storage: {{directory: {directory}, min_free_bytes: 0}}
  zpages: {{endpoint: "127.0.0.1:0"}}
service:
  extensions: [file_storage, zpages]
  pipelines:
    logs: {{receivers: [statsig], exporters: [{exporter_id}]}}
"""

_COMMANDS_TO_TRY: Final = """\

Still listening. The live page shows this day, and the forged webhook as a refused request: {page}
Try this in another terminal; the secret is that of this run:

  export {variable}={secret}
  {program} send --url {url} --sample experiment
  {program} send --url {url} --verify-url

Or with curl, signed as Statsig does (sh, bash, zsh):

  now=$(date +%s)000
  body='{{"data":[{{"eventName":"statsig::config_change","timestamp":'$now',"user":{{"name":"Release Manager"}},\
"metadata":{{"type":"Gate","name":"made_by_hand","action":"updated","environments":"staging"}}}}]}}'
  signature=$(printf 'v0:%s:%s' "$now" "$body" | openssl dgst -sha256 -hmac "${variable}" | awk '{{print $NF}}')
  curl -sS -H 'Content-Type: application/json' -H "X-Statsig-Request-Timestamp: $now" \
-H "X-Statsig-Signature: v0=$signature" --data-binary "$body" {url}

Ctrl-C ends the demo.
"""

_WHAT_TO_CHECK: Final = """\

Now check what arrived behind your collector: log records with the event name {event_name} and the
service.name statsig. There must be {count} different values of log.record.uid, with the titles above as
change_event.title. The redelivery may be there twice; the forged payments_kill_switch must not be there."""


class DemoError(Exception):
    """The demo can't continue. The message is shown to the user."""


class _StoppedError(Exception):
    """A signal asked the demo to end."""

    def __init__(self, signal_: signal.Signals) -> None:
        super().__init__(signal_.name)
        self.number = int(signal_)


class Demo:
    """One run of the demo. The arguments are the options of `statsig-otel demo`; the table is printed to `stream`."""

    def __init__(
        self,
        stream: TextIO,
        *,
        once: bool = False,
        otlp_endpoint: str | None = None,
        otlp_protocol: OtlpProtocol = "grpc",
        verbose: bool = False,
    ) -> None:
        self._once = once
        self._otlp_endpoint = otlp_endpoint
        self._sees_arrivals = otlp_endpoint is None  # the backend is the demo's own
        self._has_collector = True
        self._otlp_protocol = otlp_protocol
        self._verbose = verbose
        self._day = sample_day(time.time_ns() // 1_000_000)
        self._tally = Tally(self._day)
        self._table = Table(stream, self._tally.expected)
        self._pause = _PAUSE if stream.isatty() else 0.01
        self._secret = f"webhook-{secrets.token_hex(20)}"
        self._events: SimpleQueue[Arrived | Output | Ended | signal.Signals] = SimpleQueue()
        self._children: list[Child] = []
        self._url = ""
        self._page = ""

    def run(self) -> int:
        """Run the demo in the main thread until it ends or a signal stops it, and return the exit code.

        All started processes have ended when this returns.

        Raises:
            DemoError: A process could not be started, or ended too early.
        """
        is_day_over = False
        with ExitStack() as stack:
            stack.enter_context(_signals_handled_by(lambda number: self._events.put(signal.Signals(number))))
            directory = Path(stack.enter_context(TemporaryDirectory(prefix="statsig-otel-demo-")))
            try:
                self._start(stack, directory)
                is_good = self._send_day()
                is_day_over = True
                if not self._once:
                    self._stay()
            except _StoppedError as stopped:
                self._table.print(f"\n{stopped}: stopping")
                return 0 if is_day_over else 128 + stopped.number
            except SendError as error:
                raise DemoError("\n".join([str(error), *(child.last_lines for child in self._children)])) from error
            return 0 if is_good else 1

    def _start(self, stack: ExitStack, directory: Path) -> None:
        """Start the backend, the collector and the service: each before the one that sends to it."""
        environment = _environment(keep_otel=not self._sees_arrivals)
        if self._otlp_endpoint is not None:
            endpoint = self._otlp_endpoint
            self._table.print(f"collector  yours, at {endpoint} ({self._otlp_protocol})")
        else:
            address = stack.enter_context(backend(self._events.put))
            self._table.print(f"backend    the demo's own, OTLP over gRPC at {address}")
            endpoint = f"http://{self._start_collector(stack, directory, address, environment)}"
        queue = directory / "queue"
        configuration = _configuration(endpoint, self._otlp_protocol, queue, queued=self._sees_arrivals)
        self._start_service(stack, directory, configuration, environment)

    def _start_collector(
        self, stack: ExitStack, directory: Path, backend_address: str, environment: Mapping[str, str]
    ) -> str:
        """Start the collector if it runs here. Return the host:port to which the service has to export."""
        binary = find_binary()
        if binary is None:
            self._without_collector(f"rotel is not installed. Install it with: {HOW_TO_GET}", backend_address)
            return backend_address
        collector = self._listening_collector(stack, binary, backend_address, directory, environment)
        if isinstance(collector, str):
            self._without_collector(collector, backend_address)
            return backend_address
        self._children.append(collector)
        self._table.print(f"collector  rotel, OTLP over gRPC at {collector.endpoint}")
        return collector.endpoint

    def _listening_collector(
        self, stack: ExitStack, binary: Path, backend_address: str, directory: Path, environment: Mapping[str, str]
    ) -> Collector | str:
        """Start the collector and wait until it listens, or return why it does not."""
        failure = ""
        for _ in range(_ATTEMPTS):  # another process may take the chosen ports first
            collector = Collector(
                binary, backend=backend_address, directory=directory, environment=environment, on_event=self._events.put
            )
            stack.callback(collector.stop)
            try:
                collector.start()
            except OSError as error:
                return f"rotel does not run on this machine ({error})"
            if not self._wait(collector.is_listening_or_ended, _START_TIMEOUT, poll=0.05):
                return f"rotel does not listen after {_START_TIMEOUT:g} s: {collector.last_lines}"
            if collector.is_listening():
                return collector
            failure = collector.last_lines
        return f"rotel does not start: {failure}"

    def _start_service(
        self, stack: ExitStack, directory: Path, configuration: str, environment: Mapping[str, str]
    ) -> None:
        file = directory / "statsig-otel.yaml"
        file.write_text(configuration, encoding="utf-8")
        service = Child(
            "service",
            [sys.executable, "-m", "statsig_otel", "run", "--config", str(file)],
            {**environment, SECRET_VARIABLE: self._secret, "PYTHONUNBUFFERED": "1"},
            self._events.put,
        )
        self._children.append(service)
        stack.callback(service.stop)
        service.start()
        if not self._wait(lambda: bool(self._url), _START_TIMEOUT):
            raise DemoError(f"the service does not listen: {service.last_lines}")
        self._table.print(f"receiver   {self._url}")
        self._table.print(f"live page  {self._page}")

    def _without_collector(self, reason: str, backend_address: str) -> None:
        self._has_collector = False
        self._table.print(f"NO COLLECTOR: {reason}", _LOUD)
        self._table.print(f"The service exports straight to the backend at {backend_address}.", _LOUD)

    def _send_day(self) -> bool:
        """Send the day and show what arrives. Return whether the day went as expected."""
        client = WebhookClient(self._url)
        answer, echoed = client.verify_url()
        if not echoed:
            raise DemoError(f"the receiver did not verify its URL: {answer.status_line} {answer.text}")
        self._table.print("set-up     Statsig's URL verification was answered, so Statsig would register this URL")
        way = " through the collector" if self._has_collector else ""
        title = f"Config changes that reach the backend{way}" if self._sees_arrivals else "Accepted config changes"
        self._table.print(f"\n{title}:\n")
        self._table.heading()
        for delivery in self._day:
            is_good = self._send(client, delivery)
            self._handle_events_for(self._pause)
            if not is_good:
                break
        else:
            if self._sees_arrivals:
                self._wait(lambda: self._tally.is_complete, _ARRIVAL_TIMEOUT)
        return self._summarize()

    def _send(self, client: WebhookClient, delivery: Delivery) -> bool:
        secret = f"webhook-{secrets.token_hex(20)}" if delivery.forged else self._secret
        answer = client.post(delivery.body, secret=secret)
        if not self._sees_arrivals and answer.status == HTTPStatus.OK:
            for _, row in delivery.rows:
                self._table.row(row, redelivery=delivery.redelivery)
        return self._tally.answered(delivery, answer)

    def _summarize(self) -> bool:
        problems = self._tally.problems(sees_arrivals=self._sees_arrivals)
        self._table.print()
        for title, text in self._tally.summary(sees_arrivals=self._sees_arrivals).items():
            self._table.print(f"{title:9}  {text}")
        for problem in problems:
            self._table.print(f"PROBLEM    {problem}", _BAD)
        if problems:
            for child in self._children:
                self._table.print(child.last_lines, _QUIET)
            self._table.print("The demo found problems: see above.", _BAD)
        elif self._sees_arrivals:
            self._table.print("Every change arrived.", _GOOD)
        else:
            self._table.print(_WHAT_TO_CHECK.format(event_name=EVENT_NAME, count=len(self._tally.expected)))
            self._table.print("Your collector accepted every change.", _GOOD)
        return not problems

    def _stay(self) -> None:
        """Print what to try, and go on showing what arrives, until a signal stops the demo."""
        program = "statsig-otel" if shutil.which("statsig-otel") else f"{shlex.quote(sys.executable)} -m statsig_otel"
        url = shlex.quote(self._url)
        self._table.print(
            _COMMANDS_TO_TRY.format(
                variable=SECRET_VARIABLE, secret=self._secret, program=program, url=url, page=self._page
            )
        )
        while True:
            self._handle(self._events.get())

    def _wait(self, is_done: Callable[[], bool], seconds: float, *, poll: float | None = None) -> bool:
        """Handle events until a condition is true or the time is over. Return whether the condition is true.

        The condition is checked after each event, and every `poll` seconds.
        """
        deadline = time.monotonic() + seconds
        while not is_done():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            try:
                event = self._events.get(timeout=left if poll is None else min(left, poll))
            except Empty:
                continue
            self._handle(event)
        return True

    def _handle_events_for(self, seconds: float) -> None:
        self._wait(lambda: False, seconds)

    def _handle(self, event: Arrived | Output | Ended | signal.Signals) -> None:
        match event:
            case Arrived(uid, row):
                self._table.row(row, redelivery=self._tally.arrived(uid, row))
            case Output(child, line):
                if line.startswith(_URL_LINE):
                    self._url = line.removeprefix(_URL_LINE)
                self._page = line.partition(_PAGE_LINE)[2] or self._page
                if self._verbose:
                    self._table.print(f"{child.name}: {line}", _QUIET)
            case Ended(child) if child in self._children:
                raise DemoError(child.last_lines)
            case signal.Signals():
                raise _StoppedError(event)


@contextmanager
def _signals_handled_by(handle: Callable[[int], None]) -> Iterator[None]:
    """Handle signals within the block, so that the children are stopped in order however often Ctrl-C is pressed."""
    handled = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores SIGHUP
    before = {number: signal.signal(number, lambda number, _: handle(number)) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _environment(*, keep_otel: bool) -> dict[str, str]:
    """The environment of the children, without OTEL_* variables (unless kept) and without a proxy on loopback."""
    environment = {key: value for key, value in os.environ.items() if keep_otel or not key.startswith("OTEL_")}
    for name in ("no_proxy", "NO_PROXY"):
        environment[name] = ",".join(filter(None, (environment.get(name), "127.0.0.1", "localhost")))
    return environment


def _configuration(endpoint: str, protocol: OtlpProtocol, directory: Path, *, queued: bool) -> str:
    """The service's configuration.

    Without a queue, a 200 means that the collector has the change. The demo needs that if it can't see what arrives.
    """
    exporter_id = "otlp_grpc" if protocol == "grpc" else "otlp_http"
    return _CONFIGURATION.format(
        variable=SECRET_VARIABLE,
        exporter=f"{exporter_id}: {{endpoint: {_quoted(endpoint)}, sending_queue: {{enabled: {str(queued).lower()}}}}}",
        exporter_id=exporter_id,
        directory=_quoted(str(directory)),
    )


def _quoted(text: str) -> str:
    """The string for YAML: a JSON string is valid YAML, and the configuration's syntax doubles `$`."""
    return json.dumps(text).replace("$", "$$")
