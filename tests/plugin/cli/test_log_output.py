"""`service::telemetry` and the log that it describes; the wrong ones are in config_cases/."""

import io
import json
import logging
import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from statsig_otel.config.grammar import check
from statsig_otel.config.resolved import plain_values
from statsig_otel.config.source import parse
from statsig_otel.plugin.cli import run
from statsig_otel.plugin.cli.log_output import _Console, _JsonLines, buffered_log
from statsig_otel.plugin.cli.main import main
from statsig_otel.plugin.settings.catalog import COMPONENTS
from statsig_otel.plugin.settings.telemetry import TelemetrySettings, named_level

REST = (
    "receivers: {statsig: {endpoint: 'localhost:0', signing_secrets: []}}\nexporters: {debug: {}}\n"
    "service: {pipelines: {logs: {receivers: [statsig], exporters: [debug]}}%s}\n"
)


def telemetry(text: str) -> TelemetrySettings:
    document = parse((REST % text).encode(), file="config.yaml", directory=Path(), environ={})
    found = check(document, COMPONENTS).telemetry
    assert isinstance(found, TelemetrySettings)
    return found


@pytest.mark.parametrize("text", ["", ", telemetry: ", ", telemetry: {}", ", telemetry: {logs: {}, metrics: {}}"])
def test_nothing_said_is_the_defaults(text: str) -> None:
    assert telemetry(text) == TelemetrySettings()


@pytest.mark.parametrize(
    ("word", "level"),
    [("debug", "debug"), ("INFO", "info"), ("Warn", "warn"), ("WARNING", "warn"), ("error", "error"), ("", None)],
)
def test_levels_are_the_collector_s_in_any_case(word: str, level: str | None) -> None:
    assert named_level(word) == level
    if word:
        assert telemetry(f", telemetry: {{logs: {{level: {word}}}}}").logs.level == level


def test_no_metrics_is_what_there_is() -> None:
    assert telemetry(", telemetry: {metrics: {level: None}}").metrics.level == "none"


def test_it_is_in_the_whole_configuration() -> None:
    text = REST % ", telemetry: {logs: {level: DEBUG}}"
    configuration = check(parse(text.encode(), file="c", directory=Path(), environ={}), COMPONENTS)
    assert plain_values(configuration)["service"]["telemetry"] == {
        "logs": {"level": "debug", "encoding": "console"},
        "metrics": {"level": "normal", "readers": []},
        "traces": {"level": "normal", "processors": []},
        "journal": {"max_entries": 300, "max_bytes": "4MiB"},
    }


log = logging.getLogger("statsig_otel.test")


def test_what_is_logged_before_the_log_begins_is_held_back() -> None:
    stream = io.StringIO()
    with buffered_log(stream) as output:
        log.info("too little")
        log.warning("early")
        assert stream.getvalue() == ""
        output.begin("warn", "json")
        log.info("too little")
        log.warning("late")
    assert [json.loads(line)["msg"] for line in stream.getvalue().splitlines()] == ["early", "late"]


def test_what_is_held_back_is_written_where_nothing_begins() -> None:
    stream = io.StringIO()
    with buffered_log(stream):
        log.debug("too little")
        log.info("early")
    assert stream.getvalue().endswith(" INFO    statsig_otel.test: early\n")
    assert stream.getvalue().count("\n") == 1


def test_of_other_libraries_only_warnings_are_written() -> None:
    """Some log whole URLs at INFO, in which the secret of a webhook may be."""
    stream = io.StringIO()
    library, lookalike = logging.getLogger("httpx"), logging.getLogger("statsig_otel_chat")
    with buffered_log(stream) as output:
        library.info("early POST https://chat/secret")
        output.begin("debug")
        for one in (library, lookalike):
            one.debug("POST https://chat/secret")
            one.info("POST https://chat/secret")
            one.warning("about %s", one.name)
        log.debug("ours")
    assert [line.split(": ")[1] for line in stream.getvalue().splitlines()] == [
        "about httpx",
        "about statsig_otel_chat",
        "ours",
    ]


def test_a_line_of_json_holds_all_of_a_record() -> None:
    stream = io.StringIO()
    with buffered_log(stream) as output:
        output.begin("debug", "json")
        try:
            int("one\ntwo")
        except ValueError:
            log.warning("it %s", "broke\n", exc_info=True)
    (line,) = stream.getvalue().splitlines()
    found = json.loads(line)
    assert found["ts"].endswith("+00:00")
    assert found["stacktrace"].startswith("Traceback ")
    assert found["stacktrace"].endswith("'one\\ntwo'")
    assert (found["level"], found["logger"], found["msg"]) == ("warn", "statsig_otel.test", "it broke\n")


def reveal(text: str) -> None:
    raise ValueError(text)


def test_no_control_character_reaches_the_terminal() -> None:
    """Neither in a message nor in a traceback, which may quote what somebody sent."""
    stream = io.StringIO()
    with buffered_log(stream) as output:
        output.begin()
        try:
            reveal("\x1b]0;a title\x07\r\u202e")
        except ValueError:
            log.exception("it %s\n  hint: é", "\x1b[2J\x9b")
    lines = stream.getvalue().split("\n")
    assert all(line.isprintable() for line in lines)
    assert lines[0].endswith("statsig_otel.test: it \\x1b[2J\\x9b")
    assert lines[1:3] == ["    hint: é", "  Traceback (most recent call last):"]
    assert lines[-2:] == ["  ValueError: \\x1b]0;a title\\x07\\r\\u202e", ""]


@given(st.text(st.characters(), max_size=20), st.text("\n\r\x1b\x7f\x85\u2028\u202e\ud800 :[m0aé", max_size=20))
def test_whatever_somebody_sends_it_is_one_record_of_printable_characters(sent: str, worse: str) -> None:
    """As text, further lines begin with spaces; as JSON there are none. Nothing is lost in JSON."""
    record = logging.LogRecord("statsig_otel.test", logging.ERROR, "f", 1, "about %s and %s", (sent, worse), None)
    try:
        reveal(sent + worse)
    except ValueError:
        record.exc_info = sys.exc_info()
    first, *others = _Console().format(record).split("\n")
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ERROR   statsig_otel\.test: about ", first)
    assert all(line.isprintable() for line in (first, *others))
    assert all(line.startswith("  ") for line in others)
    line = _JsonLines().format(record)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["msg"] == f"about {sent} and {worse}"


def read(config: Path | None = None, log_level: str | None = None) -> logging.Logger:
    """Read a configuration as `run` does; the log that it begins."""
    run._read((str(config),) if config else (), log_level)
    return logging.root


def test_the_command_line_decides_over_the_file_and_the_file_over_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet, silent = tmp_path / "quiet.yaml", tmp_path / "silent.yaml"
    quiet.write_text(REST % ", telemetry: {logs: {level: error, encoding: json}}")
    silent.write_text(REST % "")
    monkeypatch.delenv("OTEL_LOG_LEVEL", raising=False)
    assert read(silent).level == logging.INFO
    monkeypatch.setenv("OTEL_LOG_LEVEL", " Debug")
    assert read(silent).level == logging.DEBUG
    assert read(quiet).level == logging.ERROR
    assert read(quiet, "WARNING").level == logging.WARNING
    assert capsys.readouterr().err == ""
    logging.getLogger("statsig_otel").warning("so")
    assert json.loads(capsys.readouterr().err)["msg"] == "so"


def test_a_level_that_is_none_is_told_in_the_form_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(REST % ", telemetry: {logs: {encoding: json}}")
    monkeypatch.setenv("OTEL_LOG_LEVEL", "loud")
    assert read(config).level == logging.INFO
    told = json.loads(capsys.readouterr().err)
    assert told["msg"] == "OTEL_LOG_LEVEL is not one of debug, info, warn and error, and counts as info"


def test_variables_that_a_file_does_not_name_are_told_by_their_names_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(REST % "")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=s3cr3t")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "5")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "7")
    read(config, "warn")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        " WARNING statsig_otel: There is a configuration, so these variables have no effect unless it names them: "
        "OTEL_EXPORTER_OTLP_HEADERS, OTEL_EXPORTER_OTLP_LOGS_TIMEOUT, OTEL_EXPORTER_OTLP_TIMEOUT"
    )
    read(None, "warn")
    assert capsys.readouterr().err == ""


def test_a_disabled_sdk_starts_nothing() -> None:
    done = CliRunner().invoke(main, ["run"], env={"OTEL_SDK_DISABLED": "True", "STATSIG_SIGNING_SECRET": ""})
    assert done.exit_code == 1
    assert done.stderr == (
        "Error: the configuration has errors\n"
        "OTEL_SDK_DISABLED: is true, and this service does nothing but export\n"
        "  hint: unset it for this service, or do not start the service\n"
    )


@pytest.mark.parametrize(
    ("value", "header", "is_told"),
    [
        ("[webhook-canary]", "", True),
        ('["${env:CANARY}"]', "", False),
        ("[]", "", False),
        ("[]", "metrics-canary", True),
        ("[]", "${env:CANARY}", False),
    ],
)
def test_a_secret_on_the_command_line_is_told_and_not_repeated(
    value: str,
    header: str,
    is_told: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Neither a signing secret, nor a header with which metrics are sent."""
    otlp = f"{{protocol: grpc, endpoint: 'h:1', headers: {{key: '{header or 'x'}'}}}}"
    readers = f", telemetry: {{metrics: {{readers: [{{periodic: {{exporter: {{otlp: {otlp}}}}}}}]}}}}"
    text = (REST % readers).replace("signing_secrets: []", f"signing_secrets: {value}")
    monkeypatch.setenv("CANARY", "webhook-canary")
    monkeypatch.setattr("sys.argv", ["statsig-otel", "run", "--config", f"yaml:{text}"])
    run._read((f"yaml:{text}",), None)
    said = capsys.readouterr().err
    assert ("is on the command line, where every user of this machine can read it" in said) == is_told
    assert "canary" not in said
