"""The table of broken files: each file in cases/ with exactly what is said about it."""

from pathlib import Path
from typing import Final

import pytest

from statsig_otel.config import ConfigError
from statsig_otel.config.grammar import check
from statsig_otel.config.source import parse
from tests.config.models import COMPONENTS
from tests.looped import looped

CASES: Final = Path(__file__).parent / "cases"
ENVIRON: Final = {"SECRET": "s3cr3t-value", "EMPTY": "", "WORD": "many", "BROKEN": "\udcff"}
NAMES: Final = sorted(path.stem for path in CASES.glob("*.yaml"))


@looped("name", NAMES)
def test_says_exactly_this(name: str) -> None:
    """No secret is in it, neither one from the environment nor one of the file. Sorted by line, no problem twice."""
    path = CASES / f"{name}.yaml"
    with pytest.raises(ConfigError) as caught:
        check(parse(path.read_bytes(), file="config.yaml", directory=CASES, environ=ENVIRON), COMPONENTS)
    message, problems = str(caught.value), caught.value.problems
    assert message == path.with_suffix(".txt").read_text(encoding="utf-8").removesuffix("\n")
    assert "s3cr3t" not in message
    assert "0123" not in message
    assert all(problem.file == "config.yaml" for problem in problems)
    assert [problem.line or 0 for problem in problems] == sorted(problem.line or 0 for problem in problems)
    assert len(set(problems)) == len(problems)


def test_every_message_belongs_to_a_file() -> None:
    assert sorted(path.stem for path in CASES.glob("*.txt")) == NAMES
