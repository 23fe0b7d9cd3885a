"""Many waits with one timer: each ends when its own time is over, and not before."""

import asyncio
import gc
import math
import weakref
from collections.abc import Awaitable, Callable

import pytest

from statsig_otel.plugin.receiver.deadlines import Deadlines

LIMIT = 10.0


def run(body: Callable[[Deadlines[str], list[str]], Awaitable[None]]) -> list[str]:
    """What has ended, in order, when the body has."""
    ended: list[str] = []

    async def main() -> None:
        async with asyncio.timeout(LIMIT):
            await body(Deadlines(ended.append), ended)

    asyncio.run(main())
    return ended


async def until(ended: list[str], count: int) -> None:
    while len(ended) < count:  # noqa: ASYNC110 - what ends a wait is under test
        await asyncio.sleep(0.001)


def test_each_wait_ends_in_its_turn_also_where_a_later_one_is_shorter() -> None:
    async def body(deadlines: Deadlines[str], ended: list[str]) -> None:
        deadlines.add("long", 0.06)
        deadlines.add("short", 0.02)
        deadlines.add("between", 0.04)
        await until(ended, 3)

    assert run(body) == ["short", "between", "long"]


def test_what_is_discarded_does_not_end_and_what_is_not_there_may_be_discarded() -> None:
    async def body(deadlines: Deadlines[str], ended: list[str]) -> None:
        deadlines.add("gone", 0.01)
        deadlines.add("stays", 0.02)
        deadlines.discard("gone")
        deadlines.discard("never here")
        await until(ended, 1)

    assert run(body) == ["stays"]


def test_a_wait_that_comes_after_the_others_have_ended_ends_too() -> None:
    async def body(deadlines: Deadlines[str], ended: list[str]) -> None:
        deadlines.add("first", 0.01)
        await until(ended, 1)
        deadlines.add("second", 0.01)
        await until(ended, 2)

    assert run(body) == ["first", "second"]


@pytest.mark.parametrize("seconds", [30.0, math.inf])
def test_hastened_waits_end_earlier_and_none_ends_later(seconds: float) -> None:
    async def body(deadlines: Deadlines[str], ended: list[str]) -> None:
        deadlines.add("long", seconds)
        deadlines.add("short", 0.01)
        deadlines.hasten(0.05)
        await until(ended, 2)

    assert run(body) == ["short", "long"]


def test_a_wait_that_ends_may_discard_another_one_that_is_over_as_well() -> None:
    ended: list[str] = []

    async def main() -> None:
        def end(wait: str) -> None:
            ended.append(wait)
            deadlines.discard("second" if wait == "first" else "first")

        deadlines: Deadlines[str] = Deadlines(end)
        deadlines.add("first", 0.0)
        deadlines.add("second", 0.0)
        async with asyncio.timeout(LIMIT):
            await until(ended, 1)
            await asyncio.sleep(0.02)

    asyncio.run(main())
    assert ended == ["first"]


def test_pending_waits_keep_no_loop_alive() -> None:
    deadlines: Deadlines[str] = Deadlines(print)

    async def main() -> "weakref.ref[asyncio.AbstractEventLoop]":
        deadlines.add("endless", 1000.0)
        return weakref.ref(asyncio.get_running_loop())

    loop = asyncio.run(main())
    gc.collect()
    assert loop() is None
