"""One service, many exporters, each with a backend that misbehaves in its own way; none costs another one anything."""

import itertools
import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from statsig_otel.plugin.record.record import uid
from tests.e2e.processes import write_config
from tests.e2e.service_process import ServiceProcess
from tests.e2e.statsig_client import ENV, RETRY, change, dead_port, give, grpc_exporter, post, uids, waiting
from tests.peers.otlp_servers import (
    GrpcAnswer,
    GrpcSink,
    HttpAnswer,
    HttpSink,
    Received,
    partial_success,
    retry_info,
)
from tests.waiting import wait_until

PER_WEBHOOK = 20
LIMIT = 512 << 10
SMALL_LIMIT = 64 << 10


class HttpBackend:
    """A backend over HTTP; `taken` are the uids that it answered with a success, in order."""

    def __init__(
        self,
        behaviour: Callable[[Received], HttpAnswer],
        settings: Mapping[str, object] | None = None,
        *,
        port: int = 0,
    ) -> None:
        self.behaviour = behaviour
        self.taken: list[str] = []
        self.sink = HttpSink(port=port)
        self.sink.answer = self._answer
        self.settings: dict[str, object] = {"endpoint": self.sink.url, "retry_on_failure": RETRY, **(settings or {})}

    def _answer(self, request: Received) -> HttpAnswer:
        answer = self.behaviour(request)
        if answer.status == 200 and not answer.cut:
            self.taken += uids([request])
        return answer


class GrpcBackend:
    """The same over gRPC."""

    def __init__(self, behaviour: Callable[[Received], GrpcAnswer]) -> None:
        self.behaviour = behaviour
        self.taken: list[str] = []
        self.sink = GrpcSink()
        self.sink.answer = self._answer
        self.settings = grpc_exporter(self.sink)

    def _answer(self, request: Received) -> GrpcAnswer:
        answer = self.behaviour(request)
        if answer.code is grpc.StatusCode.OK:
            self.taken += uids([request])
        return answer


def works(_: Received) -> HttpAnswer:
    return HttpAnswer()


def works_over_grpc(_: Received) -> GrpcAnswer:
    return GrpcAnswer()


def is_slow(_: Received) -> HttpAnswer:
    time.sleep(0.1)
    return HttpAnswer()


def answers(status: int) -> Callable[[Received], HttpAnswer]:
    return lambda _: HttpAnswer(status=status)


def flaps() -> Callable[[Received], HttpAnswer]:
    """It fails, takes what it gets without saying so, and works, by turns."""
    turns = itertools.cycle([HttpAnswer(status=503), HttpAnswer(cut="reset"), HttpAnswer()])
    return lambda _: next(turns)


def throttles() -> Callable[[Received], HttpAnswer]:
    at_first = HttpAnswer(status=429, headers={"Retry-After": "1"})
    turns = itertools.chain([at_first], itertools.repeat(HttpAnswer()))
    return lambda _: next(turns)


def throttles_over_grpc() -> Callable[[Received], GrpcAnswer]:
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    asks = (("grpc-status-details-bin", retry_info(1, code=code.value[0])),)
    turns = itertools.chain([GrpcAnswer(code, trailers=asks)], itertools.repeat(GrpcAnswer()))
    return lambda _: next(turns)


def fails_on(some: set[str], status: int) -> Callable[[Received], HttpAnswer]:
    return lambda request: HttpAnswer(status=200 if some.isdisjoint(uids([request])) else status)


def refuses_over_grpc(some: set[str]) -> Callable[[Received], GrpcAnswer]:
    refusal = GrpcAnswer(grpc.StatusCode.INVALID_ARGUMENT, "no such thing")
    return lambda request: GrpcAnswer() if some.isdisjoint(uids([request])) else refusal


def takes_up_to(limit: int) -> Callable[[Received], HttpAnswer]:
    return lambda request: HttpAnswer(status=200 if len(request.body) <= limit else 413)


def takes_all_but(one: str) -> Callable[[Received], HttpAnswer]:
    """It takes the batch and says that it left one out, not which."""
    partly = HttpAnswer(body=partial_success(1, "too old"))
    return lambda request: partly if one in uids([request]) else HttpAnswer()


def wait_until_taken(backend: HttpBackend | GrpcBackend, expected: list[str]) -> None:
    wait_until(lambda: backend.taken == expected, f"{backend.sink.address} has all")


def dead_letters(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(give(folder, "dead-letters", "list", "--json"))
    return found


def blocked(folder: Path) -> set[str]:
    rows = json.loads(give(folder, "queue", "--json"))["exporters"]
    return {row["name"] for row in rows if row["state"] == "blocked"}


def check_outages(folder: Path, *, count: int, one_in: int) -> None:
    numbers = range(count)
    large = count // 2 + 7
    changes = [change(number, **({"description": "x" * (LIMIT + 1)} if number == large else {})) for number in numbers]
    expected = [uid(one) for one in changes]
    bad = set(expected[one_in - 1 :: one_in])
    too_large, broken, left_out = expected[large], expected[count // 3], expected[count // 4]

    with ExitStack() as running:
        uncompressed = {"compression": "none"}
        short_batches = {"sending_queue": {"enabled": True, "batch": {"max_size": PER_WEBHOOK}}}
        dead = running.enter_context(ExitStack())
        down = dead.enter_context(dead_port())
        backends: dict[str, HttpBackend | GrpcBackend] = {
            "otlp_http/works": HttpBackend(works),
            "otlp_grpc/works": GrpcBackend(works_over_grpc),
            "otlp_http/slow": HttpBackend(is_slow),
            "otlp_http/flapping": HttpBackend(flaps(), short_batches),
            "otlp_http/throttling": HttpBackend(throttles()),
            "otlp_grpc/throttling": GrpcBackend(throttles_over_grpc()),
            "otlp_http/refusing_some": HttpBackend(fails_on(bad, 400)),
            "otlp_grpc/refusing_some": GrpcBackend(refuses_over_grpc(bad)),
            "otlp_http/refusing_all": HttpBackend(answers(400), short_batches),
            "otlp_http/unauthorized": HttpBackend(answers(401)),
            "otlp_http/broken_by_one": HttpBackend(fails_on({broken}, 404)),
            "otlp_http/limited": HttpBackend(takes_up_to(LIMIT), uncompressed),
            "otlp_http/small": HttpBackend(takes_up_to(SMALL_LIMIT), uncompressed),
            "otlp_http/leaving_one_out": HttpBackend(takes_all_but(left_out)),
        }
        for backend in backends.values():
            running.enter_context(backend.sink)
        exporters = {name: backend.settings for name, backend in backends.items()}
        exporters["otlp_http/down"] = {"endpoint": f"http://127.0.0.1:{down}", "retry_on_failure": RETRY}

        with ServiceProcess(write_config(folder, exporters, queued=True), env=ENV) as service:
            for start in range(0, count, PER_WEBHOOK):
                assert post(service.url, *changes[start : start + PER_WEBHOOK]).status == 200
            for name in ("otlp_http/works", "otlp_grpc/works"):
                wait_until_taken(backends[name], expected)
            assert waiting(folder)["otlp_http/down"] == count
            stuck = {"otlp_http/refusing_all", "otlp_http/unauthorized", "otlp_http/broken_by_one"}
            wait_until(lambda: blocked(folder) == stuck, "these have to be mended")
            assert waiting(folder)["otlp_http/refusing_all"] == waiting(folder)["otlp_http/unauthorized"] == count
            assert not [dead_letter for dead_letter in dead_letters(folder) if dead_letter["exporter"] in stuck]

            for name in ("otlp_http/refusing_all", "otlp_http/unauthorized"):
                mended = backends[name]
                assert isinstance(mended, HttpBackend)
                mended.behaviour = works
                give(folder, "queue", "resume", name)
            give(folder, "queue", "skip", "otlp_http/broken_by_one")
            dead.close()
            backends["otlp_http/down"] = HttpBackend(works, port=down)
            running.enter_context(backends["otlp_http/down"].sink)
            wait_until(lambda: set(waiting(folder).values()) == {0}, "the queue is drained")

        refused = {
            "otlp_http/refusing_some": bad,
            "otlp_grpc/refusing_some": bad,
            "otlp_http/broken_by_one": {broken},
            "otlp_http/limited": {too_large},
            "otlp_http/small": {too_large},
        }
        for name, backend in backends.items():
            wanted = [one for one in expected if one not in refused.get(name, ())]
            # A probe may be the first to meet the mended backend, out of order.
            taken = sorted(backend.taken, key=expected.index) if name == "otlp_http/refusing_all" else backend.taken
            assert taken == wanted, f"{name}: each once, in order"

    found = dead_letters(folder)
    records = {
        name: {dead_letter["uid"] for dead_letter in found if dead_letter["exporter"] == name} for name in refused
    }
    assert records == refused
    assert sum(dead_letter["kind"] == "record" for dead_letter in found) == sum(map(len, refused.values()))
    (batch,) = [dead_letter for dead_letter in found if dead_letter["kind"] == "batch"]
    assert (batch["exporter"], "too old" in batch["reason"]) == ("otlp_http/leaving_one_out", True)
    assert left_out in give(folder, "dead-letters", "show", str(batch["id"]), "--json")


@pytest.mark.slow
def test_each_exporter_of_many_gets_what_it_should_whatever_befalls_the_others(tmp_path: Path) -> None:
    check_outages(tmp_path, count=300, one_in=100)


@pytest.mark.slow
def test_each_exporter_of_many_gets_what_it_should_of_a_large_backlog(tmp_path: Path) -> None:
    check_outages(tmp_path, count=1500, one_in=500)
