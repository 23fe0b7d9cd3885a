"""The result of a check: its status, what was found, and a hint."""

from dataclasses import dataclass
from typing import Literal

from statsig_otel.config.errors import Problem

Status = Literal["ok", "warning", "failed", "unknown"]
"""`unknown` if the check gave no answer."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. It contains no secret."""

    check: str
    status: Status
    detail: str
    hint: str | None = None


def of_problem(check: str, problem: Problem, status: Status = "failed") -> Finding:
    """A problem of the configuration as a finding. Of a service that is stopped nobody knows the credentials."""
    text = str(Problem(problem.path, problem.message, None, problem.file, problem.line))
    return Finding(check, "unknown" if problem.of_running else status, text, problem.hint)
