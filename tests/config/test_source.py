"""What a file becomes: values, lines, texts as written."""

import math
import os
from pathlib import Path

import pytest

from statsig_otel.config import ConfigError, Problem
from statsig_otel.config.document import Document, Place
from statsig_otel.config.source import MAX_FILE, parse, read
from tests.looped import looped


def document(text: str, **environ: str) -> Document:
    return parse(text.encode(), file="config.yaml", directory=Path(), environ=environ)


@looped(
    ("written", "value"),
    [
        *((text, text) for text in ["on", "off", "yes", "No", "y", "tRUE", "1_000", "0b1", "08:30", "2001-01-01", "="]),
        *((text, text) for text in ["0x", "0o8", "1e", ".", "+", "nUll", "-.nan", "1.2.3", "٣", "9" * 101]),
        *((text, True) for text in ["true", "True", "TRUE"]),
        *((text, False) for text in ["false", "False", "FALSE"]),
        *((text, None) for text in ["null", "Null", "NULL", "~", ""]),
        ("0", 0), ("007", 7), ("-12", -12), ("+3", 3), ("0o17", 15), ("0x1F", 31),
        ("1.5", 1.5), (".5", 0.5), ("1.", 1.0), ("1e3", 1000.0), ("-1.5E-3", -0.0015),
        (".inf", math.inf), ("+.INF", math.inf), ("-.Inf", -math.inf),
        ("'5'", "5"), ('"true"', "true"), ("''", ""), ("! 5", "5"), ("!!str 5", "5"),
        ("!!int '5'", 5), ("!!float 1.5", 1.5), ("!!bool 'true'", True), ("!!null ''", None),
        ('"\\ud83d\\ude00"', "😀"), ("!!seq [1]", [1]), ("!!map {a: 1}", {"a": 1}),
    ],
)  # fmt: skip
def test_core_schema(written: str, value: object) -> None:
    """YAML 1.2.2, section 10.3: `on` and `yes` are texts."""
    values = document(f"a: {written}\n").values
    assert values == {"a": value}
    assert type(values["a"]) is type(value)


def test_nan() -> None:
    value = document("a: .nan\n").values["a"]
    assert isinstance(value, float)
    assert math.isnan(value)


def test_every_value_knows_its_line() -> None:
    """A scalar its own, all else that of its key or its dash."""
    text = "a:\n  b: 1\n  c:\n    - x\n    -\n      d: [e,\n       f]\n  g:\n    text\nh:\ni: |\n  1\n"
    places = document(text).places
    assert {path: place.line for path, place in places.items()} == {
        (): 1, ("a",): 1, ("a", "b"): 2, ("a", "c"): 3, ("a", "c", 0): 4, ("a", "c", 1): 6, ("a", "c", 1, "d"): 6,
        ("a", "c", 1, "d", 0): 6, ("a", "c", 1, "d", 1): 7, ("a", "g"): 9, ("h",): 10, ("i",): 11,
    }  # fmt: skip


def test_numbers_and_booleans_keep_their_text() -> None:
    places = document("a: 007\nb: 'x'\nc: True\nd: 1e3\ne: null\nf: text\n").places
    texts = {path[0]: place.text for path, place in places.items() if path}
    assert texts == {"a": "007", "b": None, "c": "True", "d": "1e3", "e": None, "f": None}


def test_aliases_are_the_value_once_more() -> None:
    found = document("a: &x {b: [1, &y two]}\nc: *x\nd: *y\n&k e: *k\n")
    assert found.values == {"a": {"b": [1, "two"]}, "c": {"b": [1, "two"]}, "d": "two", "e": "e"}
    assert found.places["c", "b", 0].line == 1
    assert not found.problems


def test_a_value_that_can_not_be_used_is_reported_once_for_all_its_aliases() -> None:
    found = document("a: &x [!t 1]\nb: [*x, *x]\n")
    assert [(problem.path, problem.line) for problem in found.problems] == [(("a", 0), 1)]
    assert repr(found.values) == "{'a': [UNKNOWN], 'b': [[UNKNOWN], [UNKNOWN]]}"


def test_a_byte_order_mark_is_no_part_of_the_file() -> None:
    assert parse(b"\xef\xbb\xbfa: 1\n", file="f", directory=Path(), environ={}).values == {"a": 1}


def test_line_ends_of_every_system() -> None:
    assert document("a: 1\r\nb:\r\n  - 2\r\n").values == {"a": 1, "b": [2]}


def test_one_mistake_does_not_hide_the_values_beside_it() -> None:
    found = document("a: ${NOWHERE}\nb: 1\nb: 2\nc: !x 1\nd: 4\n1: x\n")
    assert {key: repr(value) for key, value in found.values.items()} == {
        "a": "UNKNOWN", "b": "UNKNOWN", "c": "UNKNOWN", "d": "4",
    }  # fmt: skip
    assert [problem.line for problem in found.problems] == [3, 4, 6]
    assert [problem.line for problem in found.unresolved] == [1]


def test_a_file_too_large(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"#" * (MAX_FILE + 1))
    with pytest.raises(ConfigError) as caught:
        read(path, environ={})
    assert str(caught.value) == f"the file is larger than 1 MiB ({path})"


def test_too_many_values() -> None:
    with pytest.raises(ConfigError) as caught:
        document("a: [" + "1," * 20_001 + "]\n")
    assert str(caught.value) == "the file contains more than 20000 values (config.yaml:1)"


@pytest.mark.parametrize("name", ["nowhere.yaml", "nowhere/config.yaml"])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path / name, environ={})
    assert str(caught.value).startswith("the file can't be read: ")
    assert str(caught.value).endswith(f"({tmp_path / name})")


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, environ={})
    assert str(caught.value) == (
        f"the file can't be read: Is a directory ({tmp_path})\n  hint: name a file, such as config.yaml within it"
    )


def test_a_pipe_with_a_name_is_no_file(tmp_path: Path) -> None:
    """A reload would wait for a writer for ever."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="the file can't be read: it is not a regular file"):
        read(tmp_path / "pipe", environ={})


def test_a_pipe_that_the_shell_has_opened_is_read() -> None:
    """As `--config <(...)` names it. Its relative paths start at the working directory, since it has none."""
    reader, writer = os.pipe()
    with os.fdopen(reader):
        with os.fdopen(writer, "wb") as file:
            file.write(b"a: 1")
        found = read(Path(f"/dev/fd/{reader}"), environ={})
    assert found.values == {"a": 1}
    assert found.places[("a",)].directory == Path.cwd()


def test_a_path_that_no_file_can_have() -> None:
    with pytest.raises(ConfigError, match=r"'a\\x00b' is not a path: it contains a NUL byte or a surrogate"):
        read(Path("a\0b"), environ={})


def test_reads_a_file_and_what_is_beside_it(tmp_path: Path) -> None:
    """Relative paths begin at the configuration's directory, not at the working directory."""
    (tmp_path / "secret").write_text("0123\n")
    (tmp_path / "config.yaml").write_text("a: ${file:secret}\nb: ${env:HOME}\n")
    found = read(tmp_path / "config.yaml", environ={"HOME": "there"})
    assert found.values == {"a": "0123", "b": "there"}
    assert found.place(("b",)) == Place(str(tmp_path / "config.yaml"), 2, directory=tmp_path)


def test_the_environment_is_an_argument() -> None:
    """Nothing reads the process's own."""
    assert "PATH" in os.environ
    assert "PATH is not set" in document("a: ${PATH}\n").unresolved[0].message


def test_values_without_a_file_name_their_origin() -> None:
    found = Document.from_values(
        {"exporters": {"otlp_grpc": {"endpoint": "x"}}},
        "the environment",
        {("exporters", "otlp_grpc", "endpoint"): "OTEL_EXPORTER_OTLP_ENDPOINT"},
    )
    endpoint = found.problem(("exporters", "otlp_grpc", "endpoint"), "is bad")
    assert endpoint == Problem(
        ("exporters", "otlp_grpc", "endpoint"), "is bad", None, "OTEL_EXPORTER_OTLP_ENDPOINT", None
    )
    assert str(endpoint) == "exporters::otlp_grpc::endpoint: is bad (OTEL_EXPORTER_OTLP_ENDPOINT)"
    assert str(found.problem(("service",), "is required")) == "service: is required (the environment)"


def test_a_document_without_places() -> None:
    assert str(Document({}, {}).problem(("a", 0), "is bad", "mend it")) == "a[0]: is bad\n  hint: mend it"
