"""Runs the attacks against one guard without that guard: `python -m tests.attacks.mutant GUARD`.

It ends with 0, and writes nothing to standard error, if each of them then succeeds at each of its sites: what the row
expects does not happen there. The guard's texts are replaced in the source of their modules before anything imports
these.

A removal that breaks the server proves nothing. So each site has to answer a signed webhook without the guard, too, and
must not log an error. A row has to fail by its own assertion: any other error ends the program.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.attacks.guards import GUARDS, Guard

if TYPE_CHECKING:
    from tests.attacks.attack import Attack, Serve

_ATTEMPTS: Final = 5
"""How often each attack is tried. The system decides in how many pieces a request arrives, and which socket is served
first, so on a busy machine a server without the guard may resist by luck. A guard has to withstand at the first."""

_ROWS: Final = Path(__file__).parent


def replace(guard: Guard) -> None:
    """Load the guard's modules without it."""
    sources: dict[str, str] = {}
    for edit in guard.edits:
        spec = importlib.util.find_spec(edit.module)
        assert spec is not None
        assert spec.origin is not None
        source = sources.get(edit.module) or Path(spec.origin).read_text()
        assert source.count(edit.guard) == 1, edit.guard
        sources[edit.module] = source.replace(edit.guard, edit.without)
    for name, source in sources.items():
        assert name not in sys.modules, f"{name} is loaded already"
        spec = importlib.util.find_spec(name)
        assert spec is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        exec(compile(source, str(spec.origin), "exec"), module.__dict__)


def _succeeds(attack: Attack, serve: Serve) -> bool:
    """Whether an assertion of the row fails, its wait for something included."""
    try:
        attack.act(serve)
    except AssertionError as error:
        files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
        if [file for file in files if file.name != "waiting.py"][-1].parent != _ROWS:
            raise
        return True
    return False


def main(name: str) -> None:
    replace(GUARDS[name])
    from tests.attacks.attack import SITES
    from tests.attacks.table import ATTACKS

    logging.basicConfig(level=logging.ERROR)  # to standard error
    for attack in ATTACKS:
        for site in attack.sites if name in attack.guards else ():
            with SITES[site]() as served:
                assert served.is_well(), f"{site}: no webhook is taken without the guard"
            if not any(_succeeds(attack, SITES[site]) for _ in range(_ATTEMPTS)):
                sys.exit(f"{site}: {attack.name}: it does not succeed without the guard")


if __name__ == "__main__":
    main(sys.argv[1])
