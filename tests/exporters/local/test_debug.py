"""The debug exporter: what people read, to the letter, and what a flag's name must not do to their terminal."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import (
    AnyValue,
    ArrayValue,
    EntityRef,
    KeyValue,
    KeyValueList,
)
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from statsig_otel.config import ConfigError
from statsig_otel.exporters.exporter import Rejected
from statsig_otel.exporters.local.debug import DebugExporter, DebugSettings
from tests.exporters.local.debug_output import SCHEMA, change, payload, printed, strings, text
from tests.looped import looped

TIME = "2025-01-31T12:00:00.123Z"


def row(record: LogRecord) -> list[str]:
    """The cells of one line of `normal`; no cell of these tests holds two blanks."""
    line = printed(payload(record))
    assert line.endswith("\n")
    assert line.count("\n") == 1
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


@pytest.mark.parametrize(
    ("records", "expected"), [(1, "debug/mine: 1 log record\n"), (3, "debug/mine: 3 log records\n")]
)
def test_basic_is_one_line_for_a_batch(records: int, expected: str) -> None:
    assert printed(payload(*[change()] * records), "basic") == expected


def test_normal_is_one_aligned_line_for_a_record() -> None:
    """Time, type, title, who, environments, source; the columns are as wide as the widest of the batch."""
    records = (
        change(),
        change("pricing_experiment created", "experiment_created", "reviewer@example.com", ("staging", "production")),
        change("x", "gate_deleted", environments=()),
    )
    assert printed(payload(*records)) == (
        f"{TIME}  gate_updated        layout_v2 updated           dev@example.com       production           statsig\n"
        f"{TIME}  experiment_created  pricing_experiment created  reviewer@example.com  staging, production  statsig\n"
        f"{TIME}  gate_deleted        x                           dev@example.com       -                    statsig\n"
    )


def test_narrow_values_stand_below_each_other_across_batches() -> None:
    """Short values fill a least width, and a column that was wide once stays so."""
    stream = io.StringIO()
    exporter = DebugExporter("debug", DebugSettings(color="never"), stream)
    exporter.start()
    exporter.send(payload(change("x", "y", "z", ("p",))), 1, 5)
    exporter.send(payload(change("x" * 30, "y", "z", ("p",))), 1, 5)
    exporter.send(payload(change("x", "y", "z", ("p",))), 1, 5)
    assert stream.getvalue() == (
        f"{TIME}  y             x                         z                 p           statsig\n"
        f"{TIME}  y             xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx  z                 p           statsig\n"
        f"{TIME}  y             x                               z                 p           statsig\n"
    )


def test_detailed_shows_everything() -> None:
    """Resource, scope and record; values below each other; the lines of a description too."""
    assert printed(payload(change()), "detailed") == (
        "ResourceLogs #0\n"
        "  SchemaURL        -\n"
        "  -> service.name  statsig\n"
        "  ScopeLogs #0\n"
        "    Name       statsig_otel\n"
        "    Version    0.1.0\n"
        "    SchemaURL  https://opentelemetry.io/schemas/1.37.0\n"
        "    LogRecord #0\n"
        "      EventName                          statsig.config_change\n"
        "      Timestamp                          2025-01-31T12:00:00.123Z\n"
        "      ObservedTimestamp                  2025-01-31T12:00:01.123456789Z\n"
        "      SeverityNumber                     9 (INFO)\n"
        "      SeverityText                       -\n"
        "      Body                               layout_v2 updated\n"
        "      TraceId                            -\n"
        "      SpanId                             -\n"
        "      Flags                              0\n"
        "      -> change_event.type               gate_updated\n"
        "      -> change_event.title              layout_v2 updated\n"
        "      -> change_event.source             statsig\n"
        "      -> change_event.label.description  Updated Config Conditions\n"
        "                                             - Updated rule test pass percentage from 100 to 50\n"
        "      -> user.email                      dev@example.com\n"
        "      -> user.id                         1234\n"
        '      -> statsig.environments            ["production"]\n'
    )


def test_detailed_shows_values_of_every_kind() -> None:
    """Strings as they are, all else as JSON; what has no JSON form as the nearest that people read."""
    pairs = [KeyValue(key="a", value=AnyValue(int_value=1)), KeyValue(key="b", value=AnyValue(bool_value=True))]
    values = {
        "string": AnyValue(string_value="1"),
        "bool": AnyValue(bool_value=False),
        "int": AnyValue(int_value=-(2**63)),
        "double": AnyValue(double_value=0.5),
        "infinity": AnyValue(double_value=float("inf")),
        "bytes": AnyValue(bytes_value=b"\x00\xff"),
        "array": AnyValue(array_value=ArrayValue(values=[AnyValue(string_value="ä"), AnyValue()])),
        "kvlist": AnyValue(kvlist_value=KeyValueList(values=pairs)),
        "nothing": AnyValue(),
    }
    record = LogRecord(
        attributes=[KeyValue(key=key, value=value) for key, value in values.items()],
        dropped_attributes_count=3,
        severity_number=99,  # type: ignore[arg-type]  # a number of a newer OTLP
        severity_text="Informational",
        flags=257,
        trace_id=bytes(range(16)),
        span_id=bytes(range(8)),
    )
    lines = printed(payload(record), "detailed").split("LogRecord #0\n")[1]
    assert lines == (
        "      EventName               -\n"
        "      Timestamp               -\n"
        "      ObservedTimestamp       -\n"
        "      SeverityNumber          99\n"
        "      SeverityText            Informational\n"
        "      Body                    -\n"
        "      TraceId                 000102030405060708090a0b0c0d0e0f\n"
        "      SpanId                  0001020304050607\n"
        "      Flags                   257\n"
        "      DroppedAttributesCount  3\n"
        "      -> string               1\n"
        "      -> bool                 false\n"
        "      -> int                  -9223372036854775808\n"
        "      -> double               0.5\n"
        "      -> infinity             Infinity\n"
        "      -> bytes                0x00ff\n"
        '      -> array                ["ä", null]\n'
        '      -> kvlist               {"a": 1, "b": true}\n'
        "      -> nothing\n"
    )


def test_detailed_numbers_what_is_many_and_shows_the_rest_of_a_resource() -> None:
    """Several resources, scopes and records are told apart; entity references and schema URLs are there."""
    request = ExportLogsServiceRequest(
        resource_logs=[
            ResourceLogs(
                resource=Resource(
                    entity_refs=[EntityRef(type="service", id_keys=["service.name"])],
                    dropped_attributes_count=1,
                ),
                scope_logs=[ScopeLogs(log_records=[LogRecord(), LogRecord()]), ScopeLogs()],
                schema_url=SCHEMA,
            ),
            ResourceLogs(),
        ]
    )
    shown = printed(request.SerializeToString(), "detailed")
    assert [line.strip() for line in shown.splitlines() if "#" in line] == [
        "ResourceLogs #0", "ScopeLogs #0", "LogRecord #0", "LogRecord #1", "ScopeLogs #1", "ResourceLogs #1",
    ]  # fmt: skip
    assert "EntityRef" in shown
    assert '{"type": "service", "idKeys": ["service.name"]}' in shown
    assert SCHEMA in shown


def test_what_is_missing_is_a_dash() -> None:
    assert row(LogRecord()) == ["-"] * 6


def test_records_of_others_show_event_name_and_body() -> None:
    """And the observed time where there is no other, as OTLP's logs.proto asks."""
    body = AnyValue(kvlist_value=KeyValueList(values=[text("a", "b")]))
    record = LogRecord(observed_time_unix_nano=1738324801123456789, body=body, event_name="session.start")
    assert row(record) == ["2025-01-31T12:00:01.123Z", "session.start", '{"a": "b"}', "-", "-", "-"]


@pytest.mark.parametrize(
    ("attributes", "who", "environments"),
    [
        ([text("user.name", "dev"), text("user.id", "1")], "dev", "-"),
        ([text("user.id", "1")], "1", "-"),
        ([text("user.email", ""), text("user.id", "1")], "1", "-"),
        ([text("deployment.environment.name", "staging")], "-", "staging"),
        ([strings("statsig.environments", "a", "b"), text("deployment.environment.name", "a")], "-", "a, b"),
        ([text("statsig.environments", "a")], "-", "-"),
    ],
)
def test_who_and_where(attributes: list[KeyValue], who: str, environments: str) -> None:
    """The email address, else the name, else the id; the environments, else the one."""
    assert row(LogRecord(attributes=attributes))[3:5] == [who, environments]


@pytest.mark.parametrize("verbosity", ["basic", "normal", "detailed"])
def test_an_empty_request(verbosity: str) -> None:
    assert printed(b"", verbosity) == ("debug/mine: 0 log records\n" if verbosity == "basic" else "")


@pytest.mark.parametrize("verbosity", ["basic", "normal", "detailed"])
def test_a_payload_that_cannot_be_read_is_rejected(verbosity: str) -> None:
    """In every verbosity, and nothing is printed."""
    stream = io.StringIO()
    exporter = DebugExporter("debug", DebugSettings.model_validate({"verbosity": verbosity}), stream)
    exporter.start()
    assert isinstance(exporter.send(b"\xff\xff", 1, 5), Rejected)
    assert stream.getvalue() == ""


anything = st.text(alphabet=st.characters(codec="utf-8"), max_size=70)


@given(title=anything, kind=anything, who=anything, environment=anything, key=anything)
def test_any_text_prints_without_control_characters(
    title: str, kind: str, who: str, environment: str, key: str
) -> None:
    """Whatever the values and keys: printable lines; in `normal`, exactly one for each record."""
    record = change(title, kind, who, (environment,))
    record.attributes.append(text(key, title))
    record.event_name = kind
    normal, detailed = printed(payload(record, record)), printed(payload(record), "detailed")
    assert normal.count("\n") == 2
    assert all(line.isprintable() for line in (normal + detailed).split("\n"))


@looped(
    ("trick", "shown"),
    [
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("a\x9b31mb", r"a\x9b31mb"),
        ("a\nb", r"a\nb"),
        ("a\r\x08b", r"a\r\x08b"),
        ("a\u202eb", r"a\u202eb"),
        ("a\u2066b", r"a\u2066b"),
        ("a\u200bb", r"a\u200bb"),
        ("a\u2028b", r"a\u2028b"),
        ("a\x7fb", r"a\x7fb"),
    ],
)
def test_characters_that_act_on_a_terminal_are_shown_as_escapes(trick: str, shown: str) -> None:
    """ESC, CSI, line ends, backspace, bidi overrides, zero widths: seen, not obeyed, in values and keys."""
    assert row(change(trick))[2] == shown
    record = change(trick)
    record.attributes.append(text(trick, "value"))
    detailed = printed(payload(record), "detailed")
    assert f"-> {shown} " in detailed
    if trick != "a\nb":
        assert f"Body                               {shown}\n" in detailed


def test_a_value_of_several_lines_cannot_pass_for_another_attribute() -> None:
    """In `detailed` its lines begin where values do."""
    lines = printed(payload(change("x\r\n      -> user.email  else@example.com")), "detailed").splitlines()
    body = next(number for number, line in enumerate(lines) if line.lstrip().startswith("Body"))
    assert lines[body].index("x") == lines[body + 1].index("      -> user.email  else") == 41
    assert lines[body + 1][:41].strip() == ""


def test_long_values_are_shortened_in_normal_only() -> None:
    title = "x" * 200
    assert row(change(title))[2] == "x" * 47 + "…"
    assert row(change("x" * 48))[2] == "x" * 48
    assert title in printed(payload(change(title)), "detailed")


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        ("日本語", "日本語" + " " * 18),  # two cells each
        ("e\u0301", "e\u0301" + " " * 23),  # none for the combining accent
        ("日" * 40, "日" * 23 + "…"),
        ("e" + "\u0301" * 500, "e" + "\u0301" * 94 + "…" + " " * 22),
    ],
)
def test_wide_and_combining_characters_keep_the_columns(title: str, shown: str) -> None:
    """What stands behind them begins in the same cell; a pile of accents is cut too."""
    head = f"{TIME}  gate_updated  "
    assert printed(payload(change(title))) == f"{head}{shown}  dev@example.com   production  statsig\n"


def test_settings_defaults() -> None:
    assert DebugSettings.model_validate({}) == DebugSettings(verbosity="normal", color="auto")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"verbosity": "loud"}, "'basic', 'normal' or 'detailed'"),
        ({"color": "sometimes"}, "'auto', 'always' or 'never'"),
        ({"sampling_initial": 2}, "is a key of the Collector that is not supported here"),
    ],
)
def test_settings_that_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DebugSettings.model_validate(values)
