"""Where the debug exporter prints: terminals in colour, pipes that break, processes without an output."""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

import pytest

from statsig_otel.exporters.exporter import Blocked, Delivered, RetryLater
from statsig_otel.exporters.local.debug import DebugExporter, DebugSettings
from tests.exporters.local.debug_output import change, payload, printed


def test_colors_of_normal() -> None:
    """The padding stands outside of the colours, so the columns are those of the plain text."""
    colored = printed(payload(change()), color="always")
    assert colored == (
        "\x1b[2m2025-01-31T12:00:00.123Z\x1b[0m  \x1b[36mgate_updated\x1b[0m  \x1b[1mlayout_v2 updated\x1b[0m         "
        "dev@example.com   \x1b[32mproduction\x1b[0m  \x1b[2mstatsig\x1b[0m\n"
    )


def test_colors_of_detailed() -> None:
    """Headings and keys; taken away, the plain text remains."""
    colored = printed(payload(change()), "detailed", "always")
    assert "\n    \x1b[1mLogRecord #0\x1b[0m\n" in colored
    assert "\n      \x1b[36mEventName\x1b[0m                          statsig.config_change\n" in colored
    for code in ("\x1b[1m", "\x1b[36m", "\x1b[0m"):
        colored = colored.replace(code, "")
    assert colored == printed(payload(change()), "detailed")


def open_pty() -> tuple[int, TextIO]:
    """A real terminal: the descriptor that a terminal emulator reads, and the stream of the program in it."""
    emulator, terminal = os.openpty()
    return emulator, os.fdopen(terminal, "w", encoding="utf-8")


@pytest.fixture
def terminal() -> Iterator[tuple[int, TextIO]]:
    emulator, stream = open_pty()
    yield emulator, stream
    stream.close()
    os.close(emulator)


@pytest.mark.parametrize(
    ("environment", "colored"),
    [
        ({"TERM": "xterm"}, True),
        ({}, True),
        ({"TERM": "dumb"}, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_a_terminal_is_colored_unless_it_or_its_user_says_no(
    terminal: tuple[int, TextIO],
    monkeypatch: pytest.MonkeyPatch,
    environment: Mapping[str, str],
    colored: bool,
) -> None:
    emulator, stream = terminal
    set_environment(monkeypatch, environment)
    exporter = DebugExporter("debug", DebugSettings(), stream)
    exporter.start()
    assert exporter.send(payload(change()), 1, 5) == Delivered()
    seen = os.read(emulator, 4096)
    assert seen.endswith(b"statsig\x1b[0m\r\n" if colored else b"statsig\r\n")
    assert (b"\x1b[36mgate_updated\x1b[0m" in seen) is colored


@pytest.mark.parametrize(
    ("environment", "colored"), [({"TERM": "xterm"}, False), ({"TERM": "xterm", "FORCE_COLOR": "1"}, True)]
)
def test_what_is_no_terminal_is_colored_by_force_only(
    monkeypatch: pytest.MonkeyPatch,
    environment: Mapping[str, str],
    colored: bool,
) -> None:
    set_environment(monkeypatch, environment)
    assert ("\x1b" in printed(payload(change()), color="auto")) is colored


def set_environment(monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    for name in ("TERM", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_the_standard_output_of_the_start_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    """Taken at the start, not when the exporter was made, and left open at the end."""
    exporter = DebugExporter("debug", DebugSettings(verbosity="basic"))
    assert isinstance(exporter.send(payload(change()), 1, 5), RetryLater)
    exporter.start()
    assert exporter.send(payload(change()), 1, 5) == Delivered()
    exporter.shutdown()
    exporter.shutdown()
    assert isinstance(exporter.send(payload(change()), 1, 5), RetryLater)
    assert capsys.readouterr().out == "debug: 1 log record\n"
    assert not sys.stdout.closed


def test_a_process_without_a_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's sys.stdout is None where the descriptor was closed."""
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(OSError, match="no standard output"):
        DebugExporter("debug", DebugSettings()).start()


def test_it_is_flushed_before_it_counts(tmp_path: Path) -> None:
    """What was delivered has left the process's buffers."""
    path = tmp_path / "out.txt"
    with path.open("w", encoding="utf-8") as stream:
        exporter = DebugExporter("debug", DebugSettings(verbosity="basic"), stream)
        exporter.start()
        assert exporter.send(payload(change()), 1, 5) == Delivered()
        assert path.read_text() == "debug: 1 log record\n"


def test_an_output_that_cannot_write_every_character(tmp_path: Path) -> None:
    """LANG=C: escapes instead of an error."""
    path = tmp_path / "out.txt"
    with path.open("w", encoding="ascii") as stream:
        exporter = DebugExporter("debug", DebugSettings(), stream)
        exporter.start()
        assert exporter.send(payload(change("größe updated")), 1, 5) == Delivered()
    assert rb"gr\xf6\xdfe updated" in path.read_bytes()


def test_a_broken_pipe_blocks() -> None:
    """Nobody reads any more, and nobody will by himself: at every further try too."""
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w", encoding="utf-8")
    exporter = DebugExporter("debug", DebugSettings(), stream)
    exporter.start()
    for _ in range(3):
        outcome = exporter.send(payload(change()), 1, 5)
        assert isinstance(outcome, Blocked)
        assert "Broken pipe" in outcome.reason
    with contextlib.suppress(BrokenPipeError):
        stream.close()
    assert isinstance(exporter.send(payload(change()), 1, 5), Blocked)


def test_a_terminal_that_hung_up_blocks() -> None:
    emulator, stream = open_pty()
    exporter = DebugExporter("debug", DebugSettings(), stream)
    exporter.start()
    os.close(emulator)
    assert isinstance(exporter.send(payload(change()), 1, 5), Blocked)
    with contextlib.suppress(OSError):
        stream.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
def test_a_full_disk_behind_the_output_passes() -> None:
    with contextlib.suppress(OSError), Path("/dev/full").open("w", encoding="utf-8") as stream:
        exporter = DebugExporter("debug", DebugSettings(), stream)
        exporter.start()
        outcome = exporter.send(payload(change()), 1, 5)
        assert isinstance(outcome, RetryLater)
        assert "No space left" in outcome.reason
