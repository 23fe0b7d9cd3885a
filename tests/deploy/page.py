"""The commands that docs/running.md shows."""

import re

from tests.deploy.machine import ROOT

SECTIONS = dict(
    re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", (ROOT / "docs" / "running.md").read_text(), re.DOTALL | re.MULTILINE)
)


def commands(section: str) -> list[str]:
    """The blocks of a section."""
    return re.findall(r"^```sh\n(.*?)^```", SECTIONS[section], re.DOTALL | re.MULTILINE)
