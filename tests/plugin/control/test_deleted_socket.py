"""A control socket that somebody deletes or replaces while the service runs."""

import os
import stat
from functools import partial
from pathlib import Path

import pytest

from statsig_otel.plugin.control.socket import ControlError, ServiceNotRunningError, call
from tests.plugin.control.test_socket import echo, serving
from tests.waiting import wait_until


@pytest.fixture
def soon_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the server looks for its socket twice a second."""
    monkeypatch.setattr("statsig_otel.plugin.control.socket._Server.timeout", 0.02)


def is_answered(path: Path) -> bool:
    try:
        return bool(call(path, "echo", n=1) == {"n": 1})
    except (ControlError, ServiceNotRunningError):
        return False


@pytest.mark.usefixtures("soon_checked")
def test_a_socket_that_is_deleted_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = os.umask(0)
    try:
        with serving(tmp_path / "control.sock") as path:
            for _ in range(2):
                path.unlink()
                wait_until(lambda: is_answered(path), "it is made again")
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(before)
    assert list(tmp_path.iterdir()) == []
    assert caplog.text.count(f"Somebody deleted {path} while it was in use. It is made again") == 2


@pytest.mark.usefixtures("soon_checked")
def test_what_is_in_the_place_of_a_socket_stays_and_then_the_socket_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(tmp_path / "control.sock") as path:
        with serving(path, {"other": echo}):  # of a service that was faster
            wait_until(lambda: "another file is in its place" in caplog.text, "it is noticed")
            assert call(path, "other", n=2) == {"n": 2}
        wait_until(lambda: is_answered(path), "it is made again")
    assert caplog.text.count("another file is in its place") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_end_leaves_what_is_in_the_place_of_the_socket(tmp_path: Path) -> None:
    with serving(tmp_path / "control.sock") as path:
        (tmp_path / "other").touch()
        (tmp_path / "other").rename(path)
    assert path.is_file()


@pytest.mark.usefixtures("soon_checked")
def test_a_socket_whose_directory_is_deleted_is_made_once_there_is_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "queue"
    directory.mkdir()
    with serving(directory / "control.sock") as path:
        path.unlink()
        directory.rmdir()
        wait_until(lambda: "it can't be made again now (No such file or directory)" in caplog.text, "it is noticed")
        directory.mkdir()
        wait_until(lambda: is_answered(path), "it is made again")
    assert caplog.text.count("can't be made again") == 1


@pytest.mark.usefixtures("soon_checked")
def test_a_socket_that_is_only_out_of_reach_was_not_deleted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A loop of links stands for a directory that may not be entered: as root nothing is forbidden."""
    caplog.set_level("INFO")
    directory, away = tmp_path / "queue", tmp_path / "away"
    directory.mkdir()

    def is_said(text: str, times: int) -> bool:
        return caplog.text.count(text) == times

    with serving(directory / "control.sock") as path:
        for times in (1, 2):
            directory.rename(away)
            directory.symlink_to(directory)
            said = f"No command reaches this service: {path} is out of reach (Too many levels of symbolic links)"
            wait_until(partial(is_said, said, times), "it is noticed")
            directory.unlink()
            away.rename(directory)
            wait_until(partial(is_said, "in its place again", times), "it is noticed")
            assert is_answered(path)
    assert "deleted" not in caplog.text
