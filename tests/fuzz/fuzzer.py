"""One process of the fuzzer: `python -m tests.fuzz.fuzzer TARGET`, and libFuzzer's own arguments behind it."""

import importlib
import logging
import shlex
import sys
from random import Random

from tests.fuzz.targets import TARGETS, target


def main() -> None:
    """Fuzz a target until libFuzzer ends the process. Nothing of Python runs then, so `run.py` removes its files."""
    atheris = importlib.import_module("atheris")  # has no types, and is only installed where it is used
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=[*TARGETS[name]]):
        module = target(name)
    logging.disable(logging.CRITICAL)
    # By its first argument libFuzzer starts more processes, with a shell.
    command = shlex.join((sys.executable, "-m", "tests.fuzz.fuzzer", name))
    with module.checking() as check:
        if hasattr(module, "mutated"):

            def mutate(data: bytes, longest: int, seed: int) -> bytes:
                random = Random(seed)
                changed: bytes | None = module.mutated(data, random) if random.randrange(8) else None
                if changed is None or len(changed) > longest:
                    changed = atheris.Mutate(data, longest)
                return changed

            atheris.Setup([command, *sys.argv[1:]], check, custom_mutator=mutate)
        else:
            atheris.Setup([command, *sys.argv[1:]], check)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
