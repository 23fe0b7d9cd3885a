"""Blocks of docs/running.md that lose something if they go on after a command that failed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.page import commands, lines

PROGRAM = """#!/bin/sh
echo "$@" >> "$FOLDER/ran"
test "$(wc -l < "$FOLDER/ran")" -ne "$FAILS"
"""
"""In the place of each program: it notes that it ran, and fails as the given one of all."""

BLOCKS = {
    "backup of a container": commands("In a container")[7],
    "check before a container's upgrade": commands("In a container")[8],
    "restore of a container": commands("In a container")[11],
    "backup of a pod": commands("In Kubernetes")[10],
    "restore of a pod": commands("In Kubernetes")[11],
    "backup": commands("Backup")[0],
    "restore": commands("Backup")[1],
    "bring the queue": commands("Moving to another machine")[1],
    "upgrade": commands("Upgrade")[1],
    "restore for an older version": commands("Rolling back")[2],
}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=list(BLOCKS))
def test_a_block_ends_at_a_command_that_fails(block: str, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    new = tmp_path / "new"
    for folder in (programs, new / "bin"):
        folder.mkdir(parents=True)
    names = ("docker", "kubectl", "mkdir", "rm", "statsig-otel", "cp", "ln", "mv", "install", "systemctl", "tar")
    for program in (*(programs / name for name in names), new / "bin" / "statsig-otel"):
        program.write_text(PROGRAM)
        program.chmod(0o755)
    for name, existing in (("sh", "sh"), ("wc", "wc"), ("ssh", "true"), ("readlink", "true")):
        (programs / name).symlink_to(shutil.which(existing) or existing)
    (tmp_path / "backup.db").touch()
    for fails in range(1, len(lines(block)) + 1):
        (tmp_path / "ran").write_text("")
        env = {"PATH": str(programs), "FOLDER": str(tmp_path), "FAILS": str(fails), "new": str(new)}
        words = ["sh", "-c", block]
        done = subprocess.run(words, cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, check=False)
        assert (tmp_path / "ran").read_text().count("\n") == fails
        assert done.returncode != 0
