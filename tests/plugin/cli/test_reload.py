"""`statsig-otel reload` in an environment of its own: how it finds the service, and what it says where it can't."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from statsig_otel.exporters.queue.directory import CONTROL, QueueDirectory
from statsig_otel.plugin.cli.main import main
from statsig_otel.plugin.control.socket import ControlError, ControlServer


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.delenv("QUEUE", raising=False)
    monkeypatch.chdir(tmp_path)


def call(*args: str) -> Result:
    return CliRunner().invoke(main, ["reload", *args])


def config(directory: str | None = "queue", **more: object) -> str:
    """A configuration that is right but for what this environment lacks."""
    values: dict[str, Any] = {
        "receivers": {"statsig": {"signing_secrets": ["${env:STATSIG_SIGNING_SECRET}"]}},
        "exporters": {"otlp_grpc": {"endpoint": "${env:NOBODY_KNOWS}", "headers": {"a": "${file:/nowhere}"}}},
        "service": {"pipelines": {"logs": {"receivers": ["statsig"], "exporters": ["otlp_grpc"]}}},
        **more,
    }
    if directory is not None:
        values["extensions"] = {"file_storage": {"directory": directory}}
        values["service"]["extensions"] = ["file_storage"]
    Path("config.yaml").write_text(json.dumps(values))
    return "config.yaml"


@contextmanager
def service(directory: str, answer: Any) -> Iterator[list[dict[str, Any]]]:
    """Something that answers at the control socket of a directory; what it was asked."""
    asked: list[dict[str, Any]] = []

    def reload(arguments: dict[str, Any]) -> Any:
        asked.append(arguments)
        if isinstance(answer, ControlError):
            raise answer
        return answer if isinstance(answer, dict) else {"changes": answer}

    Path(directory).mkdir(exist_ok=True)
    server = ControlServer(Path(directory, CONTROL), {"reload": reload})
    server.start()
    try:
        yield asked
    finally:
        server.shutdown()


@pytest.mark.parametrize(
    ("directory", "args"),
    [
        ("queue", ("--config", "config.yaml")),
        ("queue", ("--config", "config.yaml", "--config", "yaml:exporters::debug::verbosity: ${env:NO}")),
        ("elsewhere", ("--config", "config.yaml", "--config", "yaml:extensions::file_storage::directory: elsewhere")),
        ("other", ("--directory", "other", "--config", "nowhere.yaml")),
        ("state", ()),
    ],
)
def test_the_directory_is_all_that_has_to_be_known(directory: str, args: tuple[str, ...]) -> None:
    config()
    with service(directory, ["a: has changed", "b: is gone"]) as asked:
        result = call(*args)
    assert (result.output, result.exit_code) == ("a: has changed\nb: is gone\n", 0)
    assert asked == [{}]


def test_without_a_directory_the_default_directory_is_tried() -> None:
    with service("state", []):
        assert call("--config", config(None)).output == "Nothing has changed.\n"


def test_an_extension_that_the_service_does_not_name_yet_is_taken_for_the_one() -> None:
    path = config(service={"extensions": ["${env:NO}"]})
    with service("queue", []):
        assert call("--config", path).exit_code == 0


def test_a_directory_that_only_the_service_can_know() -> None:
    result = call("--config", config("${env:QUEUE}/queue"))
    assert result.exit_code == 1
    first, second, *_ = result.output.splitlines()
    assert first == "Error: the configuration does not say where the queue's directory is"
    assert second.startswith("extensions::file_storage::directory: the environment variable QUEUE is not set (")
    assert result.output.splitlines()[-1] == (
        "hint: nothing was reloaded; pass --directory DIR, the queue's directory, which the service's log names; "
        "or send SIGHUP"
    )
    assert "STATSIG_SIGNING_SECRET" not in result.output


def test_a_configuration_that_can_not_be_read() -> None:
    result = call("--config", "nowhere.yaml")
    assert result.exit_code == 1
    assert (
        "the file can't be read: No such file or directory (nowhere.yaml)\nhint: nothing was reloaded" in result.output
    )


def test_nobody_is_there() -> None:
    result = call("--config", config())
    assert result.exit_code == 1
    assert result.output.startswith(
        f"Error: no service is running on {Path.cwd()}/queue\nhint: pass --config FILE, as the service was "
        "started, or --directory DIR"
    )


def test_a_service_that_does_not_answer_yet() -> None:
    held = QueueDirectory(Path("queue"))
    held.acquire()
    try:
        result = call("--config", config())
    finally:
        held.release()
    assert result.exit_code == 1
    assert result.output == (
        f"Error: {Path.cwd()}/queue is in use by process {os.getpid()}, starting or stopping; "
        "that process does not answer\n"
    )


def test_a_refusal_of_the_service_is_shown() -> None:
    with service("queue", ControlError("nothing has changed, for a reason")):
        result = call("--config", config())
    assert (result.output, result.exit_code) == ("Error: nothing has changed, for a reason\n", 1)


@pytest.mark.skipif("os.geteuid() != 0", reason="only root can become somebody else")
def test_a_queue_of_another_user() -> None:
    with service("queue", []):
        Path("queue").chmod(0o700)
        os.seteuid(65534)
        try:
            result = call("--directory", "queue")
        finally:
            os.seteuid(0)
    assert result.exit_code == 1
    assert result.output == (
        f"Error: {Path('queue').absolute()} is not accessible: only the service's own user and root can use its queue\n"
    )


@pytest.mark.parametrize("changes", [[], ["exporters::file/a: has changed", "exporters::file/b: is started"]])
def test_failures_are_printed_apart_with_an_exit_code_of_their_own(changes: list[str]) -> None:
    failures = [f"exporters::{name}: can't be started: it is locked" for name in ("file/a", "file/c")]
    with service("queue", {"changes": changes, "failures": failures}):
        result = call("--directory", "queue")
    assert result.stdout == "".join(f"{change}\n" for change in changes)
    assert result.stderr == "".join(f"Error: {failure}\n" for failure in failures)
    assert result.exit_code == 3
    with service("queue", {"changes": changes, "failures": []}):
        assert call("--directory", "queue").exit_code == 0
