"""examples/loki, with a stand-in: what arrives is found, and what is too old for Loki is lost nowhere.

What the stand-in refuses, and in which words, is Loki's: tests/peers/loki.py says where that is in Loki's source. That
an old record keeps no other one of its push from being stored was also measured at Grafana Cloud: "Rejection is
per-entry, not per-batch" (github.com/rknightion/graph2otel, July 2026).
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from statsig_otel.config.grammar import check
from statsig_otel.config.source import read
from statsig_otel.plugin.settings.catalog import COMPONENTS
from tests.e2e.service_process import ServiceProcess, environment, run_to_end
from tests.e2e.statsig_client import ENV, change, post
from tests.e2e.stores import as_text
from tests.e2e.test_collectors import EVERY_FIELD, EXPECTED
from tests.peers.loki import WEEK, Loki
from tests.waiting import wait_until

ROOT: Final = Path(__file__).parents[2]
EXAMPLE: Final = ROOT / "examples" / "loki"
DAY: Final = 24 * 3600

needs_curl = pytest.mark.skipif(
    shutil.which("curl") is None, reason="LOUD: curl is missing, queries of Loki are not tried"
)


@contextmanager
def service_before(loki: Loki, queue: Path) -> Iterator[ServiceProcess]:
    env = {"LOKI_URL": loki.origin, "WEBHOOK_ENDPOINT": "127.0.0.1:0", "QUEUE_DIRECTORY": str(queue)}
    with ServiceProcess(EXAMPLE / "statsig-otel.yaml", env={**ENV, **env}) as service:
        yield service


def of_age(name: str, seconds: float) -> dict[str, object]:
    return {**change(0, name=name), "timestamp": int((time.time() - seconds) * 1000)}


def asked(queue: Path, *command: str) -> Any:
    done = run_to_end(*command, "--json", "--directory", str(queue), env=ENV)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def lines(loki: Loki) -> list[str]:
    return [entry.line for entry in loki.entries]


def reasons(queue: Path) -> list[str]:
    return [one["reason"] for one in asked(queue, "dead-letters", "list")]


def test_what_waited_for_eight_days_is_kept_and_holds_up_nothing(tmp_path: Path) -> None:
    """Loki was away, and takes the young ones. It refuses the old one as too old.

    Replayed after that limit was raised, it is too far behind what has come meanwhile. With streams that are divided
    by time it is taken, too.
    """
    queue = tmp_path / "queue"
    with Loki() as loki, service_before(loki, queue) as service:
        loki.is_away = True
        old = of_age("old", 8 * DAY)
        for one in (old, of_age("young", 60), of_age("younger", 30)):
            assert post(service.url, one).status == 200
        wait_until(lambda: loki.pushes)
        loki.is_away = False

        def settled(count: int, letters: int) -> bool:
            (row,) = asked(queue, "queue")["exporters"]
            return (len(loki.entries), len(reasons(queue)), row["waiting"]) == (count, letters, 0)

        assert run_to_end("queue", "resume", "otlp_http", "--directory", str(queue), env=ENV).returncode == 0
        wait_until(lambda: settled(2, 1))
        assert sorted(lines(loki)) == ["young updated", "younger updated"]
        (letter,) = asked(queue, "dead-letters", "list")
        at = datetime.fromtimestamp(int(str(old["timestamp"])) // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        said = "entry for stream '{service_name=\"statsig\"}' has timestamp too old: "
        assert letter["reason"].startswith(f"HTTP 400 Bad Request from {loki.origin}/otlp/v1/logs: {said}{at}, oldest ")

        loki.max_age = 52 * WEEK
        assert run_to_end("dead-letters", "replay", "--all", "--directory", str(queue), env=ENV).returncode == 0
        wait_until(lambda: asked(queue, "queue")["exporters"][0]["state"] == "refused")
        assert post(service.url, of_age("next", 1)).status == 200
        wait_until(lambda: settled(3, 1))
        assert "entry too far behind" in reasons(queue)[0]

        loki.time_sharding = True
        assert run_to_end("dead-letters", "replay", "--all", "--directory", str(queue), env=ENV).returncode == 0
        wait_until(lambda: settled(4, 0))
        assert lines(loki)[2:] == ["next updated", "old updated"]


@pytest.mark.parametrize(
    ("time_sharding", "expected"),
    [(False, ["has timestamp too old", "entry too far behind"]), (True, ["has timestamp too old"])],
)
def test_a_push_that_is_refused_in_part_may_leave_a_dead_letter_of_what_was_taken(
    time_sharding: bool, expected: list[str], tmp_path: Path
) -> None:
    """Loki has stored `hours old` when it refuses the push. Sent again, it is behind `young` in an undivided stream."""
    queue = tmp_path / "queue"
    with Loki(time_sharding=time_sharding) as loki, service_before(loki, queue) as service:
        changes = [of_age("old", 8 * DAY), of_age("hours old", DAY / 4), of_age("young", 60), of_age("younger", 30)]
        assert post(service.url, *changes).status == 200
        wait_until(lambda: len(reasons(queue)) == len(expected))
        assert asked(queue, "queue")["exporters"][0]["waiting"] == 0
        assert lines(loki) == ["hours old updated", "young updated", "younger updated"]
        assert [sum(why in reason for reason in reasons(queue)) for why in expected] == [1] * len(expected)


def test_each_field_has_the_name_that_the_pages_say(tmp_path: Path) -> None:
    expected: dict[str, Any] = next(one for one in EXPECTED if one["timeUnixNano"] == "1739400185198000000")
    with Loki(max_age=100 * 52 * WEEK) as loki, service_before(loki, tmp_path / "queue") as service:
        assert post(service.url, EVERY_FIELD).status == 200
        wait_until(lambda: loki.entries)
    (entry,) = loki.entries
    metadata = {
        name: value for name, value in entry.metadata.items() if name not in ("observed_timestamp", "scope_version")
    }
    assert entry._replace(metadata=metadata) == (
        {"service_name": "statsig"},
        1739400185198000000,
        "größe_布局 updated",
        {
            **{key.replace(".", "_"): as_text(value) for key, value in expected["attributes"].items()},
            "event_name": "statsig.config_change",
            "severity_number": "9",
            "scope_name": "statsig_otel",
        },
    )


def test_the_configuration_sends_to_the_usual_port() -> None:
    configuration = check(read(EXAMPLE / "statsig-otel.yaml", environ=ENV), COMPONENTS)
    assert "'http://localhost:3100/otlp'" in repr(configuration.exporters["otlp_http"])


@needs_curl
def test_the_commands_of_the_readme(tmp_path: Path) -> None:
    """But for the ports, and for Loki: the options of its command are what the stand-in is told."""
    readme = (EXAMPLE / "README.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", readme, re.DOTALL)
    commands = [line.strip() for block in blocks for line in block.replace("\\\n", "").splitlines() if line.strip()]
    start, secret, run, secret_again, send, query = commands
    program, *options = shlex.split(start)
    assert program == "loki"
    for one in ("http", "grpc"):
        assert f"-server.{one}-listen-address=127.0.0.1" in options, (
            "it asks for no password, so nobody else may reach it"
        )
    assert "-validation.reject-old-samples.max-age=1y" in options
    assert "-shard-streams.time-sharding-enabled" in options
    assert secret == secret_again == "export STATSIG_SIGNING_SECRET=webhook-try-out"
    assert run == "statsig-otel run --config statsig-otel.yaml"
    with (
        Loki(max_age=52 * WEEK, time_sharding=True) as loki,
        service_before(loki, tmp_path / "queue") as service,
    ):
        words = shlex.split(send.replace("http://localhost:8080", service.url.partition("/api")[0]))
        assert words[0] == "statsig-otel"
        command = [sys.executable, "-m", "statsig_otel", *words[1:]]
        sent = subprocess.run(command, env=environment(ENV), capture_output=True, text=True, check=False)
        assert sent.returncode == 0, sent.stdout + sent.stderr
        words = shlex.split(query.replace("http://localhost:3100", loki.origin))

        def found() -> str:
            return subprocess.run(words, capture_output=True, text=True, check=True).stdout

        wait_until(lambda: "sample_gate updated" in found())


@needs_curl
def test_the_queries_of_the_page_find_a_change(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "backends.md").read_text()
    (block,) = re.findall(r"```text\n(\{service_name=.*?)```", page, re.DOTALL)
    for query, resource in zip(block.splitlines(), ("", "service.name=checkout,service.namespace=shop"), strict=True):
        with Loki() as loki:
            env = {**ENV, "OTEL_EXPORTER_OTLP_ENDPOINT": f"{loki.origin}/otlp", "OTEL_RESOURCE_ATTRIBUTES": resource}
            env |= {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "STATSIG_LISTEN": "127.0.0.1:0"}
            with ServiceProcess(env=env) as service:
                assert post(service.url, of_age("gate", 60)).status == 200
                wait_until(lambda: loki.entries)
                url = f"{loki.origin}/loki/api/v1/query_range"
                words = ["curl", "-sS", "-G", url, "--data-urlencode", f"query={query}"]
                done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert "gate updated" in done.stdout
