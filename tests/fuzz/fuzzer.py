"""One process of the fuzzer: `python -m tests.fuzz.fuzzer TARGET`, and libFuzzer's own arguments behind it."""

import atexit
import importlib
import logging
import shlex
import sys
from contextlib import ExitStack

from tests.fuzz.targets import TARGETS, target


def main() -> None:
    """Fuzz a target until libFuzzer ends."""
    atheris = importlib.import_module("atheris")  # has no types, and is only installed where it is used
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=[*TARGETS[name]]):
        module = target(name)
    logging.disable(logging.CRITICAL)
    stack = ExitStack()
    atexit.register(stack.close)
    # By its first argument libFuzzer starts more processes, with a shell.
    command = shlex.join((sys.executable, "-m", "tests.fuzz.fuzzer", name))
    atheris.Setup([command, *sys.argv[1:]], stack.enter_context(module.checking()))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
