"""Changes documents as trees, since most changes of their bytes only break the syntax."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from random import Random
from typing import Any, TypeAlias

from tests.fuzz.targets import Mutate

KeysBelow: TypeAlias = Callable[[str], Sequence[tuple[str, Any]]]
"""The keys that a mapping may have, each with its default, by the key of the mapping itself; "" for the document."""


def change(document: Any, random: Random, mutate: Mutate, *, keys_below: KeysBelow, values: Sequence[Any]) -> None:
    """Change one or a few values in a JSON document. The keys and values that are put in are some that matter."""
    for _ in range(random.choice((1, 1, 2, 4))):
        places = list(_places({"": document}, ""))
        container, key, name = random.choice(places[1:] or places)
        other, its_key, _ = random.choice(places)
        new, default = random.choice(keys_below(name))
        value = deepcopy(random.choice((default, random.choice(values))))
        match random.randrange(7):
            case 0 if len(places) > 1:
                del container[key]
            case 1:
                container[key] = deepcopy(other[its_key])
            case 2 if isinstance(container, dict) and len(places) > 1:
                container[new] = container.pop(key)
            case 3 | 4 if isinstance(container, dict) and len(places) > 1:
                container[new] = value
            case 5 if isinstance(container[key], str):
                container[key] = mutate(container[key].encode("utf-8", "surrogatepass")).decode("utf-8", "replace")
            case _:
                container[key] = value


def _places(container: Any, name: str) -> Iterator[tuple[Any, Any, str]]:
    """Each value: what it is in, its key or index there, and the key of the mapping that it is in."""
    for key, value in [*(container.items() if isinstance(container, dict) else enumerate(container))]:
        yield container, key, name
        if isinstance(value, dict | list):
            yield from _places(value, key.partition("/")[0] if isinstance(key, str) else name)
