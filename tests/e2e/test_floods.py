"""Floods beside real changes: no change is lost, the memory does not grow, and the live page shows what arrives.

`make bench` and `make proof` have the figures.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import attacks
from benchmarks.service import service
from benchmarks.sink import sink
from proofs.floods import looked_at, rows
from tests.e2e.service_process import environment
from tests.e2e.statsig_client import ENV, change, post
from tests.peers.ports import free_port

LONG = 30.0


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [name for name in attacks.ATTACKS if "as many as possible" in name])
def test_no_change_is_lost_beside_a_flood(name: str, tmp_path: Path) -> None:
    with (
        sink() as backend,
        service(tmp_path / "queue", backend.address, has_page=True) as running,
        looked_at(running.page) as look,
    ):
        result = attacks.beside(name, running, seconds=20.0, pace=1.0)
        assert result.answered.refused == 0
        backend.settle(result.answered.count)
        assert rows(look, 20) == 20
        assert look.ended == ""
    first, second = result.memory[: len(result.memory) // 2], result.memory[len(result.memory) // 2 :]
    assert max(second) < max(first) + (16 << 20)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["silent connections", "silent connections to a server with TLS"])
def test_no_change_is_lost_beside_silent_connections(name: str, tmp_path: Path) -> None:
    """Every second one comes from far away."""
    answered = attacks.survived(name, tmp_path, seconds=5.0, pace=10.0).answered
    assert (answered.refused, answered.count) == (0, 50)


@pytest.mark.slow
def test_idle_clients_of_two_endpoints_do_not_use_up_the_open_files(tmp_path: Path) -> None:
    """All servers together leave open files for a signed webhook."""
    ports = free_port(), free_port()
    receivers = {
        f"statsig/{port}": {"endpoint": f"127.0.0.1:{port}", "signing_secrets": ["${env:STATSIG_SIGNING_SECRET}"]}
        for port in ports
    }
    pipeline = {"receivers": [*receivers], "exporters": ["file"]}
    config = tmp_path / "config.yaml"
    config.write_text(
        json.dumps(
            {
                "receivers": receivers,
                "exporters": {"file": {"path": str(tmp_path / "changes.jsonl"), "sending_queue": {"enabled": False}}},
                "service": {"pipelines": {"logs": pipeline}},
            }
        )
    )
    limited = ["sh", "-c", 'ulimit -n 64; exec "$@"', "sh"]
    command = [*limited, sys.executable, "-m", "statsig_otel", "run", "--config", str(config)]
    with subprocess.Popen(
        command, env=environment(ENV), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            urls = [process.stdout.readline().strip().removeprefix("Webhook URL: ") for _ in ports]
            with contextlib.ExitStack() as stack:
                for port in ports * 60:
                    stack.enter_context(socket.create_connection(("127.0.0.1", port), LONG))
                assert [post(url, change(number)).status for number, url in enumerate(urls)] == [200, 200]
        finally:
            process.terminate()
            _, said = process.communicate(timeout=LONG)
    assert "2000 connections of 2 endpoints exceed the limit of 64 open files, so only 32 are served at a time" in said
    assert "can't accept" not in said
