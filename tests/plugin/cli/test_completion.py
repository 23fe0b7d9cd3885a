"""The completion of a shell, by the line that the quick start shows for it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[3] / "docs" / "quick-start.md").read_text()
LINES = dict(re.findall(r"(?m)^\| (bash|zsh|fish) \| `(.+?)` \|", PAGE))
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

ASK_BASH = """
{line}
complete -p statsig-otel >/dev/null || exit 1
COMP_WORDS=({words}) COMP_CWORD={position}
_statsig_otel_completion statsig-otel "${{COMP_WORDS[$COMP_CWORD]}}" ""
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def bash(*words: str) -> set[str]:
    """What bash offers for the last word."""
    quoted = " ".join(f"'{word}'" for word in ("statsig-otel", *words))
    script = ASK_BASH.format(line=LINES["bash"], words=quoted, position=len(words))
    command = ["bash", "--norc", "-c", script]
    return set(subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.slow
def test_bash_completes_commands_options_and_names() -> None:
    assert bash("re") == {"reload", "reconcile"}
    assert bash("queue", "") >= {"backup", "resume", "skip", "remove"}
    assert bash("run", "--conf") == {"--config"}
    assert {"gate", "experiment"} <= bash("send", "--sample", "")


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_another_shell_understands_its_line(shell: str) -> None:
    """If it is installed. In any case the command prints something for it."""
    printed = subprocess.run(
        ["statsig-otel"],
        env={**ENVIRONMENT, "_STATSIG_OTEL_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "_STATSIG_OTEL_COMPLETE" in printed.stdout
    if shutil.which(shell) is None:
        pytest.skip(f"{shell.upper()} IS NOT INSTALLED: its completion is not proven")
    line = LINES[shell].replace("\\|", "|")
    before = "autoload -Uz compinit && compinit -u; " if shell == "zsh" else ""
    subprocess.run([shell, "-c", before + line], env=ENVIRONMENT, check=True, capture_output=True)
