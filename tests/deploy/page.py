"""The commands that docs/running.md shows."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.deploy.machine import ROOT

SECTIONS = dict(
    re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", (ROOT / "docs" / "running.md").read_text(), re.DOTALL | re.MULTILINE)
)
SHELLS: Final = [found for found in map(shutil.which, ("bash", "zsh")) if found]
"""The shells for which the page promises the commands that ask for a secret."""


def commands(section: str) -> list[str]:
    """The blocks of a section."""
    return re.findall(r"^```sh\n(.*?)^```", SECTIONS[section], re.DOTALL | re.MULTILINE)


def lines(block: str) -> list[str]:
    """The commands of a block, without what joins them."""
    return [line.removesuffix(" &&") for line in block.splitlines()]


def failures(block: str) -> list[str]:
    """A block in which one command fails, for each of those that `&&` joins."""
    rows = block.splitlines()
    first = next(number for number, row in enumerate(rows) if row.endswith(" &&"))
    return [
        "\n".join([*rows[:number], "false &&" if row.endswith(" &&") else "false", *rows[number + 1 :]])
        for number, row in enumerate(rows)
        if number >= first
    ]


def run_with_answer(command: str, secret: str, *, shell: str, folder: Path, programs: Path) -> None:
    """Run a command that asks for a secret, and answer.

    No other programs than these are found: what the shell does not do itself would have the secret in its arguments,
    which the list of processes shows.
    """
    words = [shell, "-ec", command]
    subprocess.run(words, input=f"{secret}\n", text=True, cwd=folder, env={"PATH": str(programs)}, check=True)
