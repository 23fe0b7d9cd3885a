"""The queue's directory: one owner, a memory of how it was left, and names for what is set aside."""

import json
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from statsig_otel.exporters.queue.directory import QueueDirectory
from statsig_otel.exporters.queue.errors import DirectoryInUseError
from tests.exporters.queue.child import NOBODY
from tests.exporters.queue.helpers import PATIENCE, child, copy_of, delivered, line_of, put, running
from tests.looped import slow_except


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        directory = QueueDirectory(tmp_path / "a" / "b")
        directory.acquire()
        directory.mark(clean=False)
    finally:
        os.umask(before)
    assert mode(tmp_path / "a" / "b") == 0o700
    assert {file.name: mode(file) for file in directory.path.iterdir()} == {"lock": 0o600, "state.json": 0o600}
    directory.release()


def test_nothing_is_made_by_the_constructor(tmp_path: Path) -> None:
    QueueDirectory(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_second_owner_in_this_process_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    first, second = QueueDirectory(tmp_path), QueueDirectory(tmp_path)
    first.acquire()
    with pytest.raises(DirectoryInUseError, match="in use by another service of this process: stop that one"):
        second.acquire()
    first.release()
    first.release()
    second.acquire()
    second.release()


def test_an_owner_in_another_container_may_have_the_same_pid(tmp_path: Path) -> None:
    """Each container's first process is 1; what they share may be a volume."""
    with child("hold", tmp_path) as process:
        assert line_of(process) == "held"
        (tmp_path / "lock").write_text(f"{os.getpid()}\n")
        with pytest.raises(DirectoryInUseError, match=f"by the process {os.getpid()} of another container") as raised:
            QueueDirectory(tmp_path).acquire()
        assert raised.value.is_own is False


def test_the_lock_goes_with_a_process_that_is_killed(tmp_path: Path) -> None:
    with child("hold", tmp_path) as process:
        assert line_of(process) == "held"
        with pytest.raises(DirectoryInUseError, match=f"by the process {process.pid}"):
            QueueDirectory(tmp_path).acquire()
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
        directory = QueueDirectory(tmp_path)
        directory.acquire()
        directory.release()


def test_a_forked_child_does_not_keep_the_lock_of_a_parent_that_is_gone(tmp_path: Path) -> None:
    with child("fork and hold", tmp_path) as process:
        assert line_of(process) == "held"
        grandchild = int(line_of(process))
        try:
            process.kill()
            process.wait(PATIENCE)
            directory = QueueDirectory(tmp_path)
            directory.acquire()
            directory.release()
        finally:
            os.kill(grandchild, signal.SIGKILL)


def test_it_remembers_how_it_was_left(tmp_path: Path) -> None:
    directory = QueueDirectory(tmp_path)
    assert directory.was_left_clean(), "a new one"
    directory.mark(clean=False)
    assert not directory.was_left_clean()
    directory.mark(clean=True)
    assert directory.was_left_clean()
    assert json.loads((tmp_path / "state.json").read_text()) == {"clean": True, "pid": os.getpid()}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"clean": 1}', '{"clean": "true"}', "\0\0\0"])
def test_a_state_file_of_garbage_is_a_stop_without_order(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    assert not QueueDirectory(tmp_path).was_left_clean()


def test_a_state_file_that_is_no_text_is_a_stop_without_order(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_bytes(b"\xff\xfe\x80")
    assert not QueueDirectory(tmp_path).was_left_clean()


def test_a_log_is_missing_only_where_there_was_one(tmp_path: Path) -> None:
    directory = QueueDirectory(tmp_path)
    directory.mark(clean=False)
    directory.database.write_bytes(b"a page")
    assert directory.missing_file() == "queue.db-wal"
    (tmp_path / "queue.db-wal").touch()
    assert directory.missing_file() is None
    (tmp_path / "queue.db-wal").unlink()
    directory.mark(clean=True)
    assert directory.missing_file() is None
    (tmp_path / "state.json").unlink()
    assert directory.missing_file() is None, "a copy of a database that somebody has put here"
    assert directory.was_left_clean()


def test_a_database_is_missing_only_where_there_was_one(tmp_path: Path) -> None:
    directory = QueueDirectory(tmp_path)
    assert directory.missing_file() is None
    directory.database.touch()
    assert directory.missing_file() is None, "a first start that came to no end"
    directory.mark(clean=True)
    assert directory.missing_file() == "queue.db"
    directory.mark(clean=False)
    assert directory.missing_file() == "queue.db"
    directory.database.unlink()
    assert directory.missing_file() == "queue.db"
    assert not directory.has_only_log()
    (tmp_path / "queue.db-wal").write_bytes(b"a frame")
    assert directory.has_only_log()
    assert directory.missing_file() is None, "what the log holds can be carried over"


def test_what_is_set_aside_keeps_its_content_and_never_takes_anothers_name(tmp_path: Path) -> None:
    directory = QueueDirectory(tmp_path)
    asides = []
    for number in range(3):
        for suffix in ("", "-wal", "-shm"):
            Path(f"{directory.database}{suffix}").write_text(f"{number}{suffix}")
        asides.append(directory.set_aside())
        assert not list(tmp_path.glob("queue.db")) + list(tmp_path.glob("queue.db-*"))
    assert len(set(asides)) == 3
    for number, aside in enumerate(asides):
        for suffix in ("", "-wal", "-shm"):
            assert Path(f"{aside}{suffix}").read_text() == f"{number}{suffix}"


def said_as_nobody(directory: Path) -> list[str]:
    with child("start as nobody", directory) as process:
        assert process.stdout is not None
        lines = process.stdout.read().splitlines()
    assert lines.pop() == "end"
    return lines


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs another user to be one")


@as_root
def test_a_directory_that_cannot_be_written_is_said_by_name() -> None:
    said = said_as_nobody(Path("/proc/queue"))
    assert said[-1].startswith("FileNotFoundError: ")
    found = Path("/usr").stat()
    owner = f"/usr belongs to uid {found.st_uid}, gid {found.st_gid}, with mode {found.st_mode & 0o7777:o}"
    assert said_as_nobody(Path("/usr/queue")) == [
        f"check: /usr can't be written by uid {NOBODY}: {owner}",
        "PermissionError: [Errno 13] Permission denied: '/usr/queue'",
    ]


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that another user can reach; those of pytest are private."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


def share(directory: Path, mode: int) -> None:
    """As fsGroup in Kubernetes does: all belongs to a group, whoever made it."""
    directory.chmod(0o2770)
    os.chown(directory, -1, NOBODY)
    for file in directory.iterdir():
        os.chown(file, -1, NOBODY)
        file.chmod(mode)


@as_root
@pytest.mark.parametrize("killed", slow_except([False, True], True), ids=["stopped", "killed"])
def test_a_queue_of_another_user_with_the_same_group_is_used_and_said(public: Path, *, killed: bool) -> None:
    directory = public / "queue"
    with running(directory) as queue:
        put(queue, 1, 2)
        left = copy_of(directory, public / "killed")
    if killed:
        (left / "lock").touch()
        directory = left
    share(directory, 0o660)
    said = said_as_nobody(directory)
    assert said[-1] == "delivered 1 2"
    own = f"belongs to uid 0, and this service has uid {NOBODY}: its mode stays 660"
    assert f"{directory}/queue.db {own}" in said
    assert all(line.endswith(own) for line in said[:-1])
    with running(directory) as queue:
        assert delivered(queue.cursor("otlp")) == [100]


@as_root
@pytest.mark.parametrize("name", slow_except(["queue.db", "lock", "state.json"], "queue.db"))
def test_a_file_that_this_user_can_not_open_is_named_with_its_owner(public: Path, name: str) -> None:
    directory = public / "queue"
    with running(directory) as queue:
        put(queue, 1)
    share(directory, 0o660)
    (directory / name).chmod(0o600)
    owner = f"{directory}/{name} belongs to uid 0, gid {NOBODY}, with mode 600"
    assert said_as_nobody(directory) == [
        f"check: {directory}/{name} can't be written by uid {NOBODY}: {owner}",
        f"PermissionError: [Errno 13] Permission denied: '{directory}/{name}'",
    ]


@as_root
def test_a_directory_in_which_this_user_can_not_make_files_is_named_with_its_owner(public: Path) -> None:
    directory = public / "queue"
    with running(directory) as queue:
        put(queue, 1)
    share(directory, 0o660)
    directory.chmod(0o2750)
    owner = f"{directory} belongs to uid 0, gid {NOBODY}, with mode 2750"
    assert said_as_nobody(directory) == [
        f"check: {directory} can't be written by uid {NOBODY}: {owner}",
        f"PermissionError: [Errno 13] Permission denied: '{directory}'",
    ]


@pytest.mark.parametrize(
    "name", ["queue.db", "queue.db-wal", "queue.db-shm", "lock", "reserve", "state.json", "control.sock"]
)
@pytest.mark.parametrize("target", ["victim", "missing"])
def test_no_link_in_the_place_of_a_file_is_followed(tmp_path: Path, name: str, target: str) -> None:
    """Whoever can write into the directory must not have a file of somebody else overwritten or created."""
    victim, folder = tmp_path / "victim", tmp_path / "queue"
    victim.write_text("of somebody else")
    victim.chmod(0o644)
    folder.mkdir()
    (folder / name).symlink_to(tmp_path / target)
    fault = QueueDirectory(folder).check()
    assert fault is not None
    assert fault.message == f"{folder / name} is a symbolic link, where the queue has a file of its own"
    with pytest.raises(OSError, match="is a symbolic link") as error, running(folder):
        pass
    assert error.value.filename == str(folder / name)
    assert (victim.read_text(), mode(victim)) == ("of somebody else", 0o644)
    assert not (tmp_path / "missing").exists()
    assert [path.name for path in folder.iterdir()] == [name]


def test_a_link_that_is_made_after_the_look_is_not_followed_either(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("of somebody else")
    directory = QueueDirectory(tmp_path / "queue")
    directory.acquire()
    for name in ("state.json", "reserve"):
        (directory.path / name).symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"):
        directory.mark(clean=True)
    directory.reserve.keep(1 << 20, min_free=0)
    assert victim.read_text() == "of somebody else"
    directory.release()


def test_the_directory_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "queue").symlink_to(tmp_path / "disk")
    with running(tmp_path / "queue"):
        assert (tmp_path / "disk" / "queue.db").exists()
