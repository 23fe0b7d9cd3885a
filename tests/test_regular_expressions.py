"""The regular expressions of the package take no exponential time, whatever is repeated in a text."""

import importlib
import pkgutil
import re
from typing import Any, Final

import pytest

import statsig_otel

PIECES: Final = (
    "a", "A", "0", " ", "\t", "\n", "\\", '"', "'", "/", ".", ":", "-", "_", "[", "{", "<", "a/", "a.", "a ", "0,",
    "a:", "[]",
)  # fmt: skip


def expressions() -> set[re.Pattern[Any]]:
    names = (module.name for module in pkgutil.walk_packages(statsig_otel.__path__, "statsig_otel."))
    modules = [importlib.import_module(name) for name in names if not name.endswith("__main__")]
    return {value for module in modules for value in vars(module).values() if isinstance(value, re.Pattern)}


@pytest.mark.timeout(20)
def test_no_expression_tries_all_ways_to_divide_what_is_repeated() -> None:
    """What follows the repeated piece fits nowhere, so that everything is tried. 2 ** 40 ways would take hours."""
    found = expressions()
    assert len(found) > 80
    for expression in found:
        for text in (start + 40 * piece + "\0" for piece in PIECES for start in ("", "/", '"', "a")):
            given: Any = text.encode() if isinstance(expression.pattern, bytes) else text
            for ask in (expression.match, expression.fullmatch, expression.search):
                ask(given)
