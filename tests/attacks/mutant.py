"""Runs the attacks against one guard without that guard: `python -m tests.attacks.mutant GUARD`.

It prints the first attack that succeeds then. The guard's texts are replaced in the source of their modules before
anything imports these.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path
from typing import Final

from tests.attacks.guards import GUARDS, Guard

_ATTEMPTS: Final = 5
"""How often each attack is tried. The system decides in how many pieces a request arrives, and which socket is served
first, so on a busy machine a server without the guard may resist by luck. A guard has to withstand at the first."""


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


def main(name: str) -> None:
    replace(GUARDS[name])
    from tests.attacks.attack import SITES
    from tests.attacks.table import ATTACKS

    logging.disable()
    for attack in _ATTEMPTS * [attack for attack in ATTACKS if name in attack.guards]:
        for site in attack.sites:
            try:
                attack.act(SITES[site])
            except Exception as error:  # noqa: BLE001 - an assertion, or a timeout
                print(f"{site}: {attack.name}: {error!r}"[:300])
                return


if __name__ == "__main__":
    main(sys.argv[1])
