"""Floods beside real changes: no change is lost, the memory does not grow, and the live page shows what arrives.

`make bench` and `make proof` have the figures.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import attacks
from benchmarks.service import service
from benchmarks.sink import sink
from proofs.floods import looked_at, rows


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
        backend.settle(len(result.answered.took))
        assert rows(look, 20) == 20
        assert look.ended == ""
    first, second = result.memory[: len(result.memory) // 2], result.memory[len(result.memory) // 2 :]
    assert max(second) < max(first) + (16 << 20)
