"""What a guard against attacks is.

This module and those with the guards import nothing of the package: `mutant.py` replaces its modules before anything
imports them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """How a guard, or a part of one, is removed.

    Attributes:
        module: The name of the module.
        guard: A text of that module.
        without: What replaces it.
        alone: Whether a row fails if only this text is replaced. If not, a comment says what else stops the attacks.
    """

    module: str
    guard: str
    without: str
    alone: bool = True


@dataclass(frozen=True)
class Guard:
    """A part of the code that stops attacks.

    Attributes:
        does: What it does, for the documentation.
        edits: What removes it at all sites, all of them together. Where two parts of the code do the same, both are
            removed.
    """

    does: str
    edits: tuple[Edit, ...]
