"""The file exporter: what it writes, where, and after which settings."""

import logging
import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from statsig_otel.config import ConfigError
from statsig_otel.exporters.exporter import Delivered, Rejected, RetryLater
from statsig_otel.exporters.local.file import FileExporter, FileSettings
from tests.exporters.local.files import ROOT, open_descriptors, payload, run_child, titles


def test_a_line_for_each_record_of_a_batch(path: Path, opened: Callable[..., FileExporter]) -> None:
    """A batch is the joined bytes of its records; each becomes a complete ExportLogsServiceRequest on its line."""
    exporter = opened(path)
    assert exporter.send(payload("a") + payload("b\nc"), 2, 5) == Delivered()
    assert exporter.send(payload("d"), 1, 5) == Delivered()
    assert titles(path) == ["a", "b\nc", "d"]
    assert path.read_bytes().splitlines()[0] == (
        b'{"resourceLogs":[{"scopeLogs":[{"logRecords":['
        b'{"body":{"stringValue":"a"},"eventName":"statsig.config_change"}]}]}]}'
    )


def test_an_empty_payload_is_delivered_as_nothing(path: Path, opened: Callable[..., FileExporter]) -> None:
    assert opened(path).send(b"", 0, 5) == Delivered()
    assert path.read_bytes() == b""


def test_a_payload_that_cannot_be_read_is_rejected(path: Path, opened: Callable[..., FileExporter]) -> None:
    """And nothing of it is in the file."""
    exporter = opened(path)
    outcome = exporter.send(b"\xff\xff\xff", 1, 5)
    assert isinstance(outcome, Rejected)
    assert "ExportLogsServiceRequest" in outcome.reason
    assert path.read_bytes() == b""


def test_the_file_is_created_for_its_owner_only(path: Path, opened: Callable[..., FileExporter]) -> None:
    opened(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_mode_of_a_file_that_exists_stays(path: Path, opened: Callable[..., FileExporter]) -> None:
    path.touch()
    path.chmod(0o640)
    opened(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_restart_appends(path: Path, opened: Callable[..., FileExporter]) -> None:
    """What was delivered outlives a restart."""
    first = opened(path)
    first.send(payload("a"), 1, 5)
    first.shutdown()
    opened(path).send(payload("b"), 1, 5)
    assert titles(path) == ["a", "b"]


def test_without_append_a_start_empties_the_file(path: Path, opened: Callable[..., FileExporter]) -> None:
    """But not a rotation, and never a file that is not ours."""
    first = opened(path)
    first.send(payload("a"), 1, 5)
    first.shutdown()
    second = opened(path, append=False)
    second.send(payload("b"), 1, 5)
    assert titles(path) == ["b"]
    second.shutdown()
    path.write_bytes(b"letters\n")
    with pytest.raises(ValueError, match="something other"):
        opened(path, append=False)
    assert path.read_bytes() == b"letters\n"


def test_a_link_is_followed(tmp_path: Path, opened: Callable[..., FileExporter]) -> None:
    (tmp_path / "data").mkdir()
    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "data" / "real.jsonl")
    assert opened(link).send(payload("a"), 1, 5) == Delivered()
    assert link.is_symlink()
    assert titles(tmp_path / "data" / "real.jsonl") == ["a"]


def test_nothing_happens_before_start_and_after_shutdown(path: Path) -> None:
    exporter = FileExporter("file", FileSettings(path=path))
    exporter.shutdown()
    assert not path.exists()
    assert isinstance(exporter.send(payload("a"), 1, 5), RetryLater)
    exporter.start()
    exporter.shutdown()
    exporter.shutdown()
    assert isinstance(exporter.send(payload("a"), 1, 5), RetryLater)
    assert path.read_bytes() == b""


def test_shutdown_from_another_thread_tears_no_line(path: Path, opened: Callable[..., FileExporter]) -> None:
    """Sends that go on meanwhile either count and are whole, or are told to come again."""
    exporter = opened(path)
    outcomes = []

    def send() -> None:
        for number in range(10_000):
            outcomes.append(exporter.send(payload(f"{number}"), 1, 5))
            if not isinstance(outcomes[-1], Delivered):
                return

    sender = threading.Thread(target=send)
    sender.start()
    while len(outcomes) < 20:
        assert sender.is_alive()
    exporter.shutdown()
    sender.join(30)
    assert isinstance(outcomes[-1], RetryLater)
    assert titles(path) == [f"{number}" for number in range(len(outcomes) - 1)]


def test_the_start_says_where_it_writes(
    path: Path, opened: Callable[..., FileExporter], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "statsig_otel")
    opened(path)
    assert f" writes to {path}" in caplog.text


def test_a_second_process_is_refused(path: Path, opened: Callable[..., FileExporter]) -> None:
    """The error says what to do; with the first gone, the second may."""
    first = opened(path)
    code = (
        "import sys; from pathlib import Path\n"
        "from statsig_otel.exporters.local.file import FileExporter, FileSettings\n"
        "exporter = FileExporter('file', FileSettings(path=Path(sys.argv[1])))\n"
        "try: exporter.start()\n"
        "except OSError as error: print(error)\n"
    )
    child = [sys.executable, "-c", code, str(path)]
    assert subprocess.run(child, capture_output=True, text=True, timeout=60, check=True, cwd=ROOT).stdout == (
        f"{path} is locked: another process or another file exporter writes to it; "
        "stop that writer, or give this exporter another path\n"
    )
    assert first.send(payload("a"), 1, 5) == Delivered()
    first.shutdown()
    assert opened(path).send(payload("b"), 1, 5) == Delivered()


def test_two_exporters_of_one_process_cannot_share_a_file(path: Path, opened: Callable[..., FileExporter]) -> None:
    """And the refused one leaves no descriptor open."""
    opened(path)
    before = open_descriptors()
    with pytest.raises(OSError, match="another file exporter"):
        opened(path)
    assert open_descriptors() == before


def test_a_directory_that_does_not_exist(tmp_path: Path, opened: Callable[..., FileExporter]) -> None:
    with pytest.raises(FileNotFoundError, match=r"the directory .*missing does not exist; create it"):
        opened(tmp_path / "missing" / "changes.jsonl")


@pytest.mark.parametrize("kind", ["fifo", "directory", "/dev/null", "/dev/stdout"])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, opened: Callable[..., FileExporter], kind: str) -> None:
    """At once, without waiting for a fifo's reader, and with a hint."""
    path = Path(kind) if kind.startswith("/") else tmp_path / kind
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    with pytest.raises(ValueError, match="use the debug exporter") as caught:
        opened(path)
    assert str(path) in str(caught.value)


def test_a_file_of_somebody_else() -> None:
    """No permission is an OSError at the start that names the path."""
    code = (
        "import os, sys; from pathlib import Path\n"
        "from statsig_otel.exporters.local.file import FileExporter, FileSettings\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"
        "try: FileExporter('file', FileSettings(path=Path(sys.argv[1]))).start()\n"
        "except PermissionError as error: assert sys.argv[2] in str(error); print('done')\n"
    )
    with tempfile.TemporaryDirectory() as directory:  # tmp_path lies in directories that only their owner may enter
        Path(directory).chmod(0o755)
        path = Path(directory) / "changes.jsonl"
        path.touch(mode=0o400)
        run_child(code, str(path), directory)


def test_settings_defaults() -> None:
    checked = FileSettings.model_validate({"path": "/var/log/changes.jsonl"})
    assert checked == FileSettings(path=Path("/var/log/changes.jsonl"), append=True, format="json")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "is required"),
        ({"path": ""}, "is empty"),
        ({"path": "/"}, "must name a file"),
        ({"path": "x", "format": "proto"}, "proto is not supported; leave the key out"),
        ({"path": "x", "format": "xml"}, "must be 'json'"),
        ({"path": "x", "rotation": {"max_megabytes": 10}}, "let logrotate rename the file"),
        ({"path": "x", "compression": "zstd"}, "logrotate can compress rotated files"),
        ({"path": "x", "append": "perhaps"}, "must be True or False"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, object], message: str) -> None:
    """What the Collector's exporter knows and this one does not is an error, never ignored."""
    with pytest.raises(ConfigError, match=message):
        FileSettings.model_validate(settings)
