"""Cases of a test: many small ones within one test, and those that the quick tests leave out."""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest


def slow_except(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """The cases for `pytest.mark.parametrize`: those that are not named are slow, since they prove nearly the same."""
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def looped(names: str | Sequence[str], cases: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """As `pytest.mark.parametrize`, but all cases are one test, since each test costs more than a millisecond.

    For cases that take no time and share no fixture. Each case runs, and each that fails is named.
    """
    keys = [names] if isinstance(names, str) else names
    rows = [(case,) if isinstance(names, str) else tuple(case) for case in cases]

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(**others: Any) -> None:
            failures: list[BaseException] = []
            for row in rows:
                case = dict(zip(keys, row, strict=True))
                try:
                    test(**case, **others)
                except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - to be raised below
                    error.add_note(f"the case: {case!r}")
                    failures.append(error)
            if len(failures) == 1:
                raise failures[0]
            if failures:
                raise BaseExceptionGroup(f"{len(failures)} of {len(rows)} cases failed", failures)

        signature = inspect.signature(test)
        others = [parameter for parameter in signature.parameters.values() if parameter.name not in keys]
        run.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]
        return run

    return decorate
