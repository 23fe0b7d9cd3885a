"""Runs the attacks against one guard without that guard: `python -m tests.attacks.mutant GUARD [NUMBER]`.

It ends with 0, and writes nothing to standard error, if each of them then succeeds at each of its sites: what the row
expects does not happen there. With the number of one of the guard's edits only that one is made, and one attack has to
succeed at one site. The texts are replaced in the source of their modules before anything imports these.

A removal that breaks the server proves nothing. So each site has to answer a signed webhook without the guard, too, and
must not log an error. A row has to fail by its own assertion: any other error ends the program.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.attacks.guard import Edit
from tests.attacks.guards import GUARDS

if TYPE_CHECKING:
    from tests.attacks.attack import Attack, Serve, SiteName

_ATTEMPTS: Final = 5
"""How often each attack is tried. The system decides in how many pieces a request arrives, and which socket is served
first, so on a busy machine a server without the guard may resist by luck. A guard has to withstand at the first."""

_ROWS: Final = Path(__file__).parent


def replace(edits: Sequence[Edit]) -> None:
    """Load the modules of the edits with these."""
    sources: dict[str, str] = {}
    for edit in edits:
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


def without(name: str) -> None:
    """Each attack has to succeed at each site."""
    replace(GUARDS[name].edits)
    from tests.attacks.attack import SITES

    for attack, site in _tries(name):
        if not any(_succeeds(attack, SITES[site]) for _ in range(_ATTEMPTS)):
            sys.exit(f"{site}: {attack.name}: it does not succeed without the guard")


def with_one_edit(name: str, number: int) -> None:
    """One attack has to succeed at one site."""
    replace([GUARDS[name].edits[number]])
    from tests.attacks.attack import SITES

    tries = _tries(name)
    if not any(_succeeds(attack, SITES[site]) for _ in range(_ATTEMPTS) for attack, site in tries):
        sys.exit("no attack succeeds with this edit alone")


def _tries(name: str) -> list[tuple[Attack, SiteName]]:
    """The attacks against a guard, and their sites. A signed webhook is taken at each site without the guard, too."""
    from tests.attacks.attack import SITES
    from tests.attacks.table import ATTACKS

    logging.basicConfig(level=logging.ERROR)  # to standard error
    tries = [(attack, site) for attack in ATTACKS if name in attack.guards for site in attack.sites]
    for site in {site for _, site in tries}:
        with SITES[site]() as served:
            assert served.is_well(), f"{site}: no webhook is taken without the guard"
    return tries


if __name__ == "__main__":
    if sys.argv[2:]:
        with_one_edit(sys.argv[1], int(sys.argv[2]))
    else:
        without(sys.argv[1])
