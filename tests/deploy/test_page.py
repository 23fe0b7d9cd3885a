"""Blocks of docs/running.md that lose something if they go on after a command that failed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.page import commands, lines

PROGRAM = """#!/bin/sh
echo "$@" >> "$FOLDER/ran"
echo an answer
test "$(wc -l < "$FOLDER/ran")" -ne "$FAILS"
"""
"""In the place of each program: it notes that it ran, prints something, and fails as the given one of all."""

NAMES = (
    *("cp", "docker", "helm", "install", "kubectl", "ln", "mkdir", "mv", "python3", "readlink", "rm", "ssh"),
    *("statsig-otel", "systemctl", "systemd-ask-password", "tar", "useradd"),
)
BUILT_IN = ("SECRET=webhook-", "new=", "printf ", "script=", "test ", "umask ")
"""How the lines begin that run no program."""

BLOCKS = {
    "install": commands("With systemd")[0],
    "set up": commands("With systemd")[1],
    "first secret": commands("With systemd")[2],
    "rotation": commands("With systemd")[3],
    "key of a backend": commands("With systemd")[6],
    "certificate": commands("With systemd")[7],
    "exporter of the type file": commands("With systemd")[10],
    "backup of a container": commands("In a container")[7],
    "check before a container's upgrade": commands("In a container")[8],
    "restore of a container": commands("In a container")[11],
    "image in a registry": commands("In Kubernetes")[0],
    "larger volume": commands("In Kubernetes")[9],
    "backup of a pod": commands("In Kubernetes")[10],
    "restore of a pod": commands("In Kubernetes")[11],
    "backup": commands("Backup")[0],
    "restore": commands("Backup")[1],
    "bring the queue": commands("Moving to another machine")[1],
    "copies before an upgrade": commands("Upgrade")[0],
    "check before an upgrade": commands("Upgrade")[1],
    "upgrade": commands("Upgrade")[2],
    "put back": commands("Rolling back")[0],
    "switch back": commands("Rolling back")[1],
    "restore for an older version": commands("Rolling back")[2],
}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=list(BLOCKS))
def test_a_block_ends_at_a_command_that_fails(block: str, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    new, before = tmp_path / "new", tmp_path / "an answer"  # to `readlink`
    for folder in (programs, new / "bin", before / "bin"):
        folder.mkdir(parents=True)
    block = block.replace("/etc/", f"{tmp_path}/").replace("/var/backups/", f"{tmp_path}/")
    others = (new / "bin" / "statsig-otel", new / "bin" / "pip", before / "bin" / "statsig-otel")
    for program in (*(programs / name for name in NAMES), *others):
        program.write_text(PROGRAM)
        program.chmod(0o755)
    stand_ins = {"sh": "sh", "wc": "wc", "cat": "cat", "date": "date", "id": "false", "openssl": "true"}
    for name, existing in stand_ins.items():
        (programs / name).symlink_to(shutil.which(existing) or existing)
    for name in ("backup.db", "queue.db", "before-upgrade.db"):
        (tmp_path / name).write_text("a backup")
    (tmp_path / "examples" / "docker").mkdir(parents=True)
    (tmp_path / "examples" / "docker" / "restore.py").write_text("pass")
    (tmp_path / "statsig-otel").mkdir()
    for name in ("service", "socket"):
        (tmp_path / "systemd" / "system" / f"statsig-otel.{name}.d").mkdir(parents=True)
    ran = [line for line in lines(block) if not line.startswith(BUILT_IN)]
    block = "".join(line for line in block.splitlines(keepends=True) if not line.startswith("new="))
    for fails in range(1, len(ran) + 1):
        (tmp_path / "ran").write_text("")
        env = {"PATH": str(programs), "FOLDER": str(tmp_path), "FAILS": str(fails), "new": str(new)}
        words = ["sh", "-c", block]
        done = subprocess.run(words, cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, check=False)
        assert (tmp_path / "ran").read_text().count("\n") == fails
        assert done.returncode != 0


@pytest.mark.parametrize("block", [name for name in BLOCKS if name.startswith("restore")])
@pytest.mark.parametrize("empty", [False, True])
def test_a_restore_without_a_backup_stops_nothing(block: str, empty: bool, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    if empty:
        for name in ("backup.db", "queue.db", "before-upgrade.db"):
            (tmp_path / name).touch()
    for name in ("docker", "kubectl", "systemctl"):
        (programs / name).write_text('#!/bin/sh\n: > "$FOLDER/ran"\n')
        (programs / name).chmod(0o755)
    words = ["/bin/sh", "-c", BLOCKS[block].replace("/var/backups/", f"{tmp_path}/")]
    done = subprocess.run(words, cwd=tmp_path, env={"PATH": str(programs), "FOLDER": str(tmp_path)}, check=False)
    assert done.returncode != 0
    assert not (tmp_path / "ran").exists()
