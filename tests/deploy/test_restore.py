"""The restores of a container and of a pod, run again after a failure: no record of the queue that was there is lost.

`docker` and `kubectl` are programs that run the script here. test_container.py runs it in the image.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from statsig_otel.exporters.queue.backup import back_up
from tests.deploy.machine import ROOT
from tests.deploy.page import commands
from tests.exporters.queue.helpers import copy_of, delivered, put, reading, running

pytestmark = pytest.mark.slow

PROGRAM = f"""#!{sys.executable}
import os, pathlib, subprocess, sys
COPY = "a whole copy"
if "cat" in sys.argv:
    print(COPY[: 3 if os.environ["FAILS"] == "cut off" else None], end="")
if "cmp" in sys.argv:
    sys.exit(sys.stdin.read() != COPY)
if "-c" in sys.argv:
    script = sys.argv[sys.argv.index("-c") + 1]
    assert script.count('"/var/lib/statsig-otel"') == 1
    script = script.replace("/var/lib/statsig-otel", os.environ["QUEUE"])
    if status := subprocess.run([sys.executable, "-c", script]).returncode:
        sys.exit(status)
sys.exit(os.environ["FAILS"] in " ".join(sys.argv))
"""
"""Fails at one command, and where this is the script, after it. A copy may be cut off without an error."""

KILLED = """
import os, pathlib, sys
left = int(sys.argv[1])
def limited(method):
    def move(path, to):
        global left
        if left == 0:
            os._exit(137)
        left -= 1
        return method(path, to)
    return move
pathlib.Path.rename, pathlib.Path.replace = limited(pathlib.Path.rename), limited(pathlib.Path.replace)
"""
"""Before the script: it is killed when it has moved so many files."""

RESTORES = {"container": commands("In a container")[11], "pod": commands("In Kubernetes")[11]}
FAILURES = [
    ("container", "--entrypoint python3"),
    ("container", " up --no-build"),
    ("pod", "exec --stdin"),
    ("pod", "delete pod statsig-otel-restore"),
    ("pod", "--replicas=1"),
]


def prepare(folder: Path) -> Path:
    """A queue of three records, and a backup from before the third."""
    queue = folder / "queue"
    with running(queue) as started:
        put(started, 1, 2)
        with reading(started.database) as connection:
            back_up(connection, folder / "backup.db")
        put(started, 3)
    (folder / "examples").symlink_to(ROOT / "examples")
    for name in ("docker", "kubectl"):
        (folder / name).write_text(PROGRAM)
        (folder / name).chmod(0o755)
    (folder / "cat").symlink_to(shutil.which("cat") or "cat")
    return queue


@pytest.mark.parametrize("fails", [" cat ", "cut off", "no command"])
def test_only_a_whole_backup_of_a_pod_replaces_the_last_one(fails: str, tmp_path: Path) -> None:
    """And only its owner can read it."""
    prepare(tmp_path)
    (tmp_path / "mv").symlink_to(shutil.which("mv") or "mv")
    (tmp_path / "backup.db").write_text("the last one")
    (tmp_path / "backup.db").chmod(0o644)
    done = run(f"umask 022\n{commands('In Kubernetes')[10]}", tmp_path, fails=fails)
    (found,) = tmp_path.glob("backup.db.new" if done.returncode else "backup.db")
    assert found.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "backup.db").read_text() == ("a whole copy" if fails == "no command" else "the last one")


def run(block: str, folder: Path, *, fails: str = "no command") -> subprocess.CompletedProcess[str]:
    env = {"PATH": str(folder), "QUEUE": str(folder / "queue"), "FAILS": fails}
    return subprocess.run(["/bin/sh", "-c", block], cwd=folder, env=env, capture_output=True, text=True, check=False)


def waiting(queue: Path) -> list[int]:
    with running(queue) as started:
        return delivered(started.cursor("otlp"))


@pytest.mark.parametrize(("where", "fails"), FAILURES)
def test_a_second_restore_keeps_the_queue_that_the_first_one_found(where: str, fails: str, tmp_path: Path) -> None:
    queue = prepare(tmp_path)
    assert run(RESTORES[where], tmp_path, fails=fails).returncode == 1
    (first,) = queue.glob("old-*")
    time.sleep(1)  # a folder's name has the second
    again = run(RESTORES[where], tmp_path)
    assert again.returncode == 0, again.stderr
    one, second = sorted(queue.glob("old-*"))
    assert one == first
    assert second.name in again.stdout
    assert [waiting(directory) for directory in (first, second, queue)] == [[1, 2, 3], [1, 2], [1, 2]]


@pytest.mark.parametrize("where", RESTORES)
@pytest.mark.parametrize("kept", [0, 1, 20_000, -1])
def test_a_backup_that_is_cut_off_changes_nothing(where: str, kept: int, tmp_path: Path) -> None:
    """Also if that happens on its way to the volume: the local file has some bytes, or the block would end sooner."""
    queue = prepare(tmp_path)
    whole = (tmp_path / "backup.db").read_bytes()
    before = {path.name for path in queue.iterdir()}
    (tmp_path / "backup.db").write_bytes(whole[:kept])
    block = RESTORES[where].removeprefix("test -s backup.db &&\n")
    done = run(block, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("The backup can't be used, and the queue is as it was: ")
    assert {path.name for path in queue.iterdir()} == before
    (tmp_path / "backup.db").write_bytes(whole)
    assert run(block, tmp_path).returncode == 0
    (old,) = queue.glob("old-*")
    assert [waiting(old), waiting(queue)] == [[1, 2, 3], [1, 2]]


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_restore_that_is_killed_between_two_files_divides_no_queue(tmp_path: Path, *, is_whole: bool) -> None:
    """The third record is in the log, as after a crash. The second run gets the backup, or a part of it."""
    with running(tmp_path / "started") as started:
        put(started, 1, 2)
        with reading(started.database) as connection:
            back_up(connection, tmp_path / "backup.db")
        put(started, 3)
        crashed = copy_of(tmp_path / "started", tmp_path / "crashed")
    assert (crashed / "queue.db-wal").stat().st_size
    backup = (tmp_path / "backup.db").read_bytes()
    for moved in range(20):
        queue = Path(shutil.copytree(crashed, tmp_path / str(moved)))
        if restore(queue, backup, KILLED, str(moved)).returncode == 0:
            break
        was_done = not (queue / "new.db").exists()
        time.sleep(1)  # a folder's name has the second
        again = restore(queue, backup if is_whole else backup[:20_000])
        assert again.returncode == (not is_whole), again.stderr
        found = [waiting(queue), *(waiting(database.parent) for database in queue.glob("*/queue.db"))]
        assert found[0] == ([1, 2] if is_whole or was_done else [1, 2, 3])
        assert [1, 2, 3] in found
    assert 3 < moved < 19


def restore(queue: Path, backup: bytes, before: str = "", *arguments: str) -> subprocess.CompletedProcess[bytes]:
    script = (ROOT / "examples" / "docker" / "restore.py").read_text().replace("/var/lib/statsig-otel", str(queue))
    command = [sys.executable, "-c", f"{before}\n{script}", *arguments]
    return subprocess.run(command, input=backup, capture_output=True, check=False)


def test_a_folder_of_an_earlier_restore_is_not_mixed_with_a_log_without_its_database(tmp_path: Path) -> None:
    with running(tmp_path / "started") as started:
        put(started, 1)
        queue = copy_of(tmp_path / "started", tmp_path / "queue")
    shutil.copytree(queue, queue / "old-2026-01-01-000000")
    (queue / "queue.db").unlink()

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in queue.rglob("*") if path.is_file()}

    before = files()
    assert restore(queue, b"not a backup").returncode == 1
    assert files() == before
