"""One process of the fuzzer: `python -m tests.fuzz.fuzzer TARGET`, and libFuzzer's own arguments behind it."""

import gc
import importlib
import logging
import shlex
import sys
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any, Final

from tests.fuzz.targets import TARGETS, Check, is_chosen, target

COUNTED: Final = 8
"""Of so many inputs one also tells how often it has reached a place."""

_MOST: Final = 8
"""How often it tells that at most. To libFuzzer 1, 2, 3, 4 to 7, and 8 to 15 times are not the same."""


def main() -> None:
    """Fuzz a target until libFuzzer ends the process. Nothing of Python runs then, so `run.py` removes its files."""
    atheris = importlib.import_module("atheris")  # has no types, and is only installed where it is used
    name = sys.argv.pop(1)
    told = telling(atheris)
    with atheris.instrument_imports(include=[*TARGETS[name]]):
        module = target(name)
    logging.disable(logging.CRITICAL)
    # By its first argument libFuzzer starts more processes, with a shell.
    command = shlex.join((sys.executable, "-m", "tests.fuzz.fuzzer", name))
    with module.checking() as check:
        gc.collect()
        gc.freeze()  # what is there now stays
        if hasattr(module, "mutated"):

            def mutate(data: bytes, longest: int, seed: int) -> bytes:
                changed: bytes = module.mutated(data, Random(seed), lambda part: atheris.Mutate(part, longest))
                return changed if len(changed) <= longest else atheris.Mutate(data, longest)

            atheris.Setup([command, *sys.argv[1:]], told(check), custom_mutator=mutate)
        else:
            atheris.Setup([command, *sys.argv[1:]], told(check))
        atheris.Fuzz()


def telling(atheris: Any) -> Callable[[Check], Check]:
    """Have instrumented code note the places that it reaches. They are told to libFuzzer once for each input.

    To tell each at once takes as long as all the rest.
    """
    reached: list[int] = []
    tell, atheris._trace_branch = atheris._trace_branch, reached.append

    def told(check: Check) -> Check:
        def check_and_tell(data: bytes) -> None:
            check(data)
            if is_chosen(data, COUNTED):
                for place, count in Counter(reached).items():
                    for _ in range(min(count, _MOST)):
                        tell(place)
            else:
                for place in {*reached}:
                    tell(place)
            reached.clear()

        reached.clear()  # of the imports
        return check_and_tell

    return told


if __name__ == "__main__":
    main()
