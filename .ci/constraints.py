"""Prints a constraints file for pip: the oldest or the newest versions of the dependencies, or the pinned ones.

    python .ci/constraints.py oldest|newest|pinned

The oldest versions are the lower bounds in pyproject.toml. What the dependencies themselves depend on has its newest
version, so does everything with `newest`.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)>=(?P<oldest>[\w.]+)(,<[\w.]+)?(?P<marker> *;.*)?")


def oldest() -> str:
    """A line for each dependency of the project and of its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines: list[str] = []
    for requirement in [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]:
        match = REQUIREMENT.fullmatch(requirement)
        if match is None:
            sys.exit(f"pyproject.toml: {requirement!r} must be written as NAME>=OLDEST, with an upper bound or without")
        lines.append("{name}=={oldest}{marker}".format_map(match.groupdict(default="")))
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["pinned"]:
            sys.stdout.write((ROOT / "constraints.txt").read_text(encoding="utf-8"))
        case ["oldest"]:
            sys.stdout.write(oldest())
        case ["newest"]:
            pass
        case _:
            sys.exit(__doc__)
