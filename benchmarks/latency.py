"""How long after the answer does a change reach the backend?

Changes of 1 KB are posted to `statsig-otel run` at a steady pace, one and fifty per second, over keep-alive connections
that are idle in between. Two times are measured for each: from the request to its answer, and from the answer to the
sink, by the monotonic clock that all processes of a machine share. If a change reaches the sink before its answer is
read, the second time is 0.
Target: A / B of at most 2, for p99.

    python benchmarks/latency.py [--rounds N] [--seconds S] [--directory DIR] [--quick]
"""

import argparse
import asyncio
import contextlib
import json
import time
from itertools import islice

from benchmarks import measure, webhooks
from benchmarks.load import quantile
from benchmarks.service import service
from benchmarks.sink import sink
from benchmarks.webhooks import CHANGE
from statsig_otel.plugin.record.record import uid

RATES = (1, 50)
_CONNECTIONS = 8
_MOMENT = 0.5
"""Seconds for the delivery of the first changes, which open the connections and are not counted."""


# The load generator. It prints when it sent each change and when it read the answer.


async def pace(port: int, rate: float, number: int) -> dict[str, tuple[float, float]]:
    """Post changes at a steady pace. Return when each was sent and answered, by its uid."""
    idle: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    for _ in range(_CONNECTIONS):
        idle.put_nowait(await asyncio.open_connection(measure.HOST, port))
    times: dict[str, tuple[float, float]] = {}

    async def one(request: bytes, change: str) -> None:
        reader, writer = await idle.get()
        sent = time.monotonic()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        times[change] = sent, time.monotonic()
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"a change was answered with {head!r} {body!r}")
        idle.put_nowait((reader, writer))

    async with asyncio.TaskGroup() as posting:
        began = time.monotonic()
        for index, request in enumerate(islice(webhooks.requests(CHANGE), number)):
            change = uid(json.loads(request.partition(b"\r\n\r\n")[2])["data"][0])
            await asyncio.sleep(began + index / rate - time.monotonic())
            posting.create_task(one(request, change))
    while not idle.empty():
        idle.get_nowait()[1].close()
    return times


# The parent.


def post(port: int, rate: float, number: int) -> dict[str, tuple[float, float]]:
    arguments = ("--port", str(port), "--rate", str(rate), "--number", str(number))
    printed = measure.output("-m", "benchmarks.latency", *arguments, timeout=number / rate * 2 + measure.START_TIMEOUT)
    return {change: (sent, answered) for change, (sent, answered) in json.loads(printed).items()}


def compare(given: argparse.Namespace) -> None:
    rows = []
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(measure.working_directory(given.directory))
        backend = stack.enter_context(sink())
        running = stack.enter_context(service(directory / "queue", backend.address))
        post(running.port, _CONNECTIONS, _CONNECTIONS)
        time.sleep(_MOMENT)
        backend.take()
        for rate in RATES:
            number = max(2, round(rate * given.seconds))
            delays: dict[int, list[float]] = {50: [], 99: []}
            answers: dict[int, list[float]] = {50: [], 99: []}
            for _ in range(given.rounds):
                times = post(running.port, rate, number)
                arrived: dict[str, float] = {}
                latest = time.monotonic() + measure.START_TIMEOUT
                while not times.keys() <= arrived.keys():
                    if time.monotonic() > latest:
                        raise RuntimeError("acknowledged changes did not reach the sink")
                    time.sleep(0.05)
                    arrived |= backend.arrivals()
                delivery = [max(0.0, arrived[change] - answered) * 1000 for change, (_, answered) in times.items()]
                answer = [(answered - sent) * 1000 for sent, answered in times.values()]
                for hundredths, found in delays.items():
                    found.append(quantile(delivery, hundredths))
                    answers[hundredths].append(quantile(answer, hundredths))
            for hundredths, found in delays.items():
                label = f"{rate} per second ({number} changes), p{hundredths}"
                rows.append(measure.comparison(label, found, answers[hundredths], ".2f"))
        file_system = measure.file_system(directory)
    measure.publish(
        "latency",
        "Milliseconds. A: from the answer to the sink; B: from the request to the answer, which includes a commit.",
        f"{measure.machine()}. On {file_system}.",
        measure.arguments(given, ("rounds", "seconds")),
        measure.table(measure.COMPARISON, rows),
    )


def main() -> None:
    parser = measure.parser(__doc__, rounds=3, quick={"rounds": 2, "seconds": 5.0})
    parser.add_argument("--seconds", type=float, default=60.0, help="the length of one measurement")
    measure.add_directory(parser)
    for hidden, kind in (("--port", int), ("--rate", float), ("--number", int)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.port is not None:
        print(json.dumps(asyncio.run(pace(given.port, given.rate, given.number))))
    else:
        compare(given)


if __name__ == "__main__":
    main()
