"""What a service is built of, and what is wrong with it: the words of a configuration file, without a line."""

import math
import threading
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from statsig_otel.config import ConfigError, Opaque
from statsig_otel.config.configuration import Pipeline
from statsig_otel.exporters import Delivered, FileSettings, OtlpGrpcSettings, OtlpHttpSettings, Outcome
from statsig_otel.exporters.delivery import sender, synchronous
from statsig_otel.exporters.network.tls import GrpcTlsSettings
from statsig_otel.plugin import (
    Destination,
    RetryOnFailureSettings,
    SendingQueueSettings,
    Service,
    StatsigReceiverSettings,
)
from statsig_otel.plugin.settings.doubts import doubts
from tests.looped import looped
from tests.plugin.services import SECRET, Keeper, names_in, post_change, service

RECEIVER = StatsigReceiverSettings(signing_secrets=[Opaque(SECRET)])
OTHER = StatsigReceiverSettings(signing_secrets=[], path="/other", max_connections=5)
GRPC = OtlpGrpcSettings(endpoint="localhost:4317", tls=GrpcTlsSettings(insecure=True))
KEEPER = Keeper()
WRONG: Any = False


class AsyncKeeper:
    def start(self) -> None: ...

    async def send(self, payload: bytes, count: int, timeout: float) -> None: ...  # noqa: ASYNC109 - the protocol's

    def shutdown(self) -> None: ...


DIFFERS = (
    "receivers::statsig/b::max_connections: differs from receivers::statsig::max_connections, "
    "which listens on the same endpoint"
)
MORE_BYTES = {"signing_secrets": [], "path": "/more", "max_in_flight_bytes": "256MiB"}
DIFFERS_IN_BYTES = (
    "receivers::statsig/b::max_in_flight_bytes: differs from receivers::statsig::max_in_flight_bytes, which"
)
NO_TYPE = "exporters::my own: a type has letters, digits and _ only, begins with a letter and has at most 63 of them"
DIRECT = SendingQueueSettings(enabled=False)


def build(**arguments: Any) -> Service:
    given = {"receivers": {"statsig": RECEIVER}, "exporters": {"otlp_grpc": GRPC}, "directory": "queue"}
    return Service(**{**given, **arguments})


BAD_SEND = "has a send() that can't be called as send(payload, count, timeout)"


@looped(
    ("arguments", "problems"),
    [
        ({"receivers": {}}, ["receivers: is empty"]),
        ({"receivers": {"statsig": {"endpont": "x:1", "signing_secrets": []}}},
         ["receivers::statsig::endpont: unknown key"]),
        ({"receivers": {"statsig": {"signing_secrets": [], "read_timeout": 5}}},
         ["receivers::statsig::read_timeout: a duration needs a unit, such as 5s or 5ms"]),
        ({"receivers": {"statsgi": RECEIVER}}, ["receivers::statsgi: there is no receiver of the type 'statsgi'"]),
        ({"receivers": {"statsig": GRPC}},
         ["receivers::statsig: has OtlpGrpcSettings, which are not settings of its type"]),
        ({"receivers": {"statsig": RECEIVER, "statsig/b": OTHER}},
         [DIFFERS]),
        ({"receivers": {"statsig": RECEIVER, "statsig/b": MORE_BYTES}},
         [f"{DIFFERS_IN_BYTES} listens on the same endpoint"]),
        ({"receivers": {"statsig": RECEIVER, "statsig/b": MORE_BYTES}, "listen": False},
         [f"{DIFFERS_IN_BYTES} is in the same application"]),
        ({"exporters": {"otlp_grpc": OtlpHttpSettings(endpoint="http://localhost")}},
         ["exporters::otlp_grpc: has OtlpHttpSettings, which are not settings of its type"]),
        ({"exporters": {"otlp_grpc": {"endpoint": "x:1", "compression": "zstd"}}},
         ["exporters::otlp_grpc::compression: zstd is not supported here; use gzip or none"]),
        ({"exporters": {"otlp_grpc": KEEPER}},
         ["exporters::otlp_grpc: is an id of the type otlp_grpc, which is made of settings"]),
        ({"receivers": None, "exporters": None}, ["receivers: must be a mapping", "exporters: must be a mapping"]),
        ({"exporters": {"a": KEEPER, "b": KEEPER}}, ["exporters::b: is the same object as exporters::a"]),
        ({"exporters": {"mine": Keeper}}, ["exporters::mine: is a class"]),
        ({"exporters": {"mine": object()}}, ["exporters::mine: is not an exporter: object has no start()"]),
        ({"exporters": {"my own": Keeper()}}, [NO_TYPE]),
        *(({"exporters": {"mine": Destination(KEEPER, timeout=seconds)}},
           ["exporters::mine::timeout: must be seconds, more than 0, and at most 292 years"])
          for seconds in (0, math.nan, math.inf, cast("float", "10"))),
        ({"exporters": {"otlp_grpc": Destination(GRPC, timeout=1)}},
         ["exporters::otlp_grpc::timeout: is a key of the exporter's own settings"]),
        ({"pipelines": {"logs": Pipeline(("statsig",), ("otlp_http",))}},
         ["pipelines::logs::exporters[0]: there is no exporter 'otlp_http'"]),
        ({"exporters": {"otlp_grpc": GRPC, "otlp_grpc/b": GRPC},
          "pipelines": {"logs": Pipeline(("statsig",), ("otlp_grpc",))}},
         ["exporters::otlp_grpc/b: is not used by any pipeline"]),
        ({"receivers": {1: RECEIVER}}, ["receivers::1: must have a string as its key"]),
        ({"receivers": [RECEIVER]}, ["receivers: must be a mapping"]),
        ({"receivers": {"statsig": 5}}, ["receivers::statsig: must be a mapping"]),
        ({"exporters": {1: GRPC}}, ["exporters::1: must have a string as its key"]),
        ({"pipelines": {1: Pipeline(("statsig",), ("otlp_grpc",))}},
         ["pipelines::1: must have a string as its key"]),
        ({"pipelines": {"logs": {"receivers": ["statsig"], "exporter": ["otlp_grpc"]}}},
         ["pipelines::logs::exporter: unknown key"]),
        ({"pipelines": {"logs": 5}}, ["pipelines::logs: must be a mapping"]),
        ({"exporters": {"otlp_grpc": Destination(GRPC, sending_queue={"enable": False})}},
         ["exporters::otlp_grpc::sending_queue::enable: unknown key"]),
        ({"exporters": {"mine": Destination(KEEPER, retry_on_failure={"max_interval": 5})}},
         ["exporters::mine::retry_on_failure::max_interval: a duration needs a unit, such as 5s or 5ms"]),
        ({"exporters": {"mine": Destination(KEEPER, sending_queue=WRONG)}},
         ["exporters::mine::sending_queue: must be a mapping"]),
        ({"resource": {"a": None, "b": "x"}}, ["resource::a: has no value"]),
        ({"resource": {1: "a"}}, ["resource::1: must have a string as its key"]),
        ({"exporters": {"mine": AsyncKeeper()}},
         ["exporters::mine: is not an exporter: AsyncKeeper has an async send(), and it is called in a thread"]),
        ({"exporters": {"mine": SimpleNamespace(start=str, send=lambda batch: batch, shutdown=str)}},
         [f"exporters::mine: is not an exporter: SimpleNamespace {BAD_SEND}"]),
        ({"directory": None}, ["directory: is required: what waits for otlp_grpc is kept there"]),
        ({"directory": ""}, ["directory: is required: what waits for otlp_grpc is kept there"]),
        ({"min_free_bytes": -1}, ["min_free_bytes: must not be negative"]),
        ({"receivers": {"statsig": StatsigReceiverSettings(signing_secrets=[], endpoint="x:1")}, "listen": False},
         ["receivers::statsig::endpoint: is not used: the service does not listen"]),
        ({"receivers": {"statsig": {"signing_secrets": [""]}}, "exporters": {}, "min_free_bytes": -1},
         ["receivers::statsig::signing_secrets[0]: is empty", "exporters: is empty",
          "min_free_bytes: must not be negative"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_as_of_a_file(arguments: dict[str, Any], problems: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        build(**arguments)
    said = [str(problem).partition("\n")[0] for problem in caught.value.problems]
    assert sorted(said) == sorted(problems)


def test_a_secret_is_in_no_message() -> None:
    with pytest.raises(ConfigError) as caught:
        build(receivers={"statsig": {"signing_secrets": [f" {SECRET}"]}})
    assert "white space" in str(caught.value)
    assert SECRET not in str(caught.value)
    with pytest.raises(ConfigError) as invalid:
        StatsigReceiverSettings(signing_secrets=[Opaque(f" {SECRET}")])
    assert SECRET not in str(invalid.value)


def test_without_a_queue_there_is_no_directory() -> None:
    keeper = Keeper()
    receiver = StatsigReceiverSettings(endpoint="127.0.0.1:0", signing_secrets=[Opaque(SECRET)])
    with Service(receivers={"statsig": receiver}, exporters={"mine": Destination(keeper, DIRECT)}) as running:
        assert post_change(running, "a").status == 200
        assert keeper.names == ["a"]
    assert keeper.stopped == 1


def test_settings_and_what_a_file_would_say_are_the_same() -> None:
    built = build(
        receivers={"statsig": StatsigReceiverSettings(signing_secrets=[], read_timeout=90.0, path="/x")},
        exporters={
            "otlp_grpc": Destination(
                OtlpGrpcSettings(endpoint="localhost:4317", timeout=2.5),
                sending_queue=SendingQueueSettings(queue_size=7),
                retry_on_failure=RetryOnFailureSettings(initial_interval=1, max_interval=2),
            ),
            "file": FileSettings(path=Path("changes.jsonl")),
        },
    )
    written = build(
        receivers={"statsig": {"signing_secrets": [], "read_timeout": timedelta(minutes=1.5), "path": "/x"}},
        exporters={
            "otlp_grpc": {
                "endpoint": "localhost:4317",
                "timeout": "2500ms",
                "sending_queue": {"queue_size": 7},
                "retry_on_failure": {"initial_interval": "1s", "max_interval": "2s"},
            },
            "file": {"path": "changes.jsonl"},
        },
    )
    assert built._assembly.configuration == written._assembly.configuration
    assert not list(doubts(built._assembly.configuration))


def test_a_mapping_does_where_a_file_has_one() -> None:
    built = build(
        exporters={"otlp_grpc": Destination(GRPC, DIRECT, RetryOnFailureSettings(max_interval=60))},
        pipelines={"logs": Pipeline(("statsig",), ("otlp_grpc",))},
    )
    written = build(
        exporters={"otlp_grpc": Destination(GRPC, {"enabled": False}, {"max_interval": "1m"})},
        pipelines={"logs": {"receivers": ["statsig"], "exporters": ["otlp_grpc"]}},
    )
    assert built._assembly.configuration == written._assembly.configuration


def test_pipelines_say_whose_changes_are_for_whom(tmp_path: Path) -> None:
    first, second = Keeper(), Keeper()
    pipelines = {
        "logs": Pipeline(("statsig",), ("first",)),
        "logs/none": Pipeline(("statsig/other",), ("second",)),
    }
    receivers = {
        "statsig": StatsigReceiverSettings(endpoint="127.0.0.1:0", signing_secrets=[Opaque(SECRET)]),
        "statsig/other": StatsigReceiverSettings(endpoint="127.0.0.1:0", signing_secrets=[], path="/other"),
    }
    exporters = {"first": first, "second": second}
    with Service(
        receivers=receivers, exporters=exporters, pipelines=pipelines, directory=tmp_path, min_free_bytes=0
    ) as running:
        assert post_change(running, "a").status == 200
        assert running.without_secret == ["statsig/other"]
        assert running.urls["statsig/other"].endswith("/other")
    assert (first.names, second.names) == (["a"], [])


def test_a_timeout_reaches_an_exporter_of_ones_own(tmp_path: Path) -> None:
    class Timed(Keeper):
        def send(self, payload: bytes, count: int, timeout: float) -> Any:
            timeouts.append(timeout)
            return super().send(payload, count, timeout)

    timeouts: list[float] = []
    with service(tmp_path, {"mine": Destination(Timed(), timeout=1.5)}) as running:
        assert post_change(running, "a").status == 200
    assert timeouts == [1.5]


@pytest.mark.parametrize("asked_for", ["batches of one", "the first record"])
def test_a_backend_may_take_one_record_at_a_time(tmp_path: Path, asked_for: str) -> None:
    class OneByOne(Keeper):
        def send(self, payload: bytes, count: int, timeout: float) -> Outcome:
            self.go_on.wait(60)
            counts.append(count)
            self.names.append(names_in(payload)[0])
            return Delivered(only=[0])

    counts: list[int] = []
    keeper = OneByOne(hold=True)
    one_each = {"batch": {"max_size": 1}} if asked_for == "batches of one" else None
    with service(tmp_path, {"mine": Destination(keeper, sending_queue=one_each)}) as running:
        for name in "abcd":
            assert post_change(running, name).status == 200
        keeper.go_on.set()
    assert keeper.names == list("abcd")
    assert (len(counts), counts[-1], max(counts) > 1) == (4, 1, one_each is None)


@pytest.mark.parametrize("is_queued", [True, False])
def test_a_shutdown_says_that_an_exporter_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, is_queued: bool
) -> None:
    class Hanging(Keeper):
        def shutdown(self) -> None:
            end.wait(60)

    monkeypatch.setattr(sender, "HANGING_SEND", 0.1)
    monkeypatch.setattr(synchronous, "SEND_MARGIN", 0.1)
    end = threading.Event()
    try:
        exporter = Destination(Hanging(), sending_queue={"enabled": is_queued})
        running = service(tmp_path, {"mine": exporter})
        running.start()
        assert not running.shutdown(2)
        assert "mine: a send or the shutdown hangs; it is left behind" in caplog.text
    finally:
        end.set()
