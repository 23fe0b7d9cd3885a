"""`${env:NAME}`, `${file:/path}` and `$$` within a text."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statsig_otel.config.document import Document
from statsig_otel.config.errors import SettingError
from statsig_otel.config.source import parse
from statsig_otel.config.substitution import MAX_FILE, Substitution, from_code
from tests.looped import looped

ENVIRON = {"A": "one", "B": "two words", "EMPTY": "", "_x1": "x", "DOLLAR": "$$ ${A} ${file:/nowhere}", "NUMBER": "5"}


def expand(text: str, directory: Path = Path()) -> str:
    value, faults = Substitution(ENVIRON, directory).expand(text)
    assert not faults
    return value


def faults(text: str, directory: Path = Path()) -> list[str]:
    return [fault.message for fault in Substitution(ENVIRON, directory).expand(text)[1]]


@looped(
    ("text", "value"),
    [
        ("", ""), ("plain", "plain"), ("${env:A}", "one"), ("${A}", "one"), ("${_x1}", "x"), ("${env:EMPTY}", ""),
        ("${env:A:-default}", "one"), ("${env:EMPTY:-default}", ""), ("${env:NO:-default}", "default"),
        ("${NO:-a:-b}", "a:-b"), ("${env:NO:-}", ""), ("${NO:-http://h:1/$x}", "http://h:1/$x"), ("${NO:-\n}", "\n"),
        ("a${A}b${env:B}c${A}", "aonebtwo wordscone"), ("${A}${A}", "oneone"),
        ("$$", "$"), ("$$$", "$$"), ("$$$$", "$$"), ("$${A}", "${A}"), ("$$${A}", "$one"), ("$", "$"), ("a$", "a$"),
        ("$A", "$A"), ("$ {A}", "$ {A}"), ("5$ {", "5$ {"), ("{A}", "{A}"), ("$(A)", "$(A)"), ("${A}}", "one}"),
        ("${DOLLAR}", "$$ ${A} ${file:/nowhere}"),
    ],
)  # fmt: skip
def test_puts_in(text: str, value: str) -> None:
    """What was put in is not looked at again; a default counts only where the variable is not set at all."""
    assert expand(text) == value


@looped(
    ("text", "messages"),
    [
        ("${NO}", ["the environment variable NO is not set"]),
        ("${env:NO}-${NO2}", ["the environment variable NO is not set", "the environment variable NO2 is not set"]),
        ("${", ["contains a ${ without its }"]),
        ("${A} ${env:A", ["contains a ${ without its }"]),
        ("${A:-${B}}", ["contains a ${ within a ${...}"]),
        *((f"${{{name}}}", ["contains a ${...} that names no environment variable"])
          for name in ["", "env:", "1a", "a-b", "a b", "env:é", "env:A:B", " A", "A:", "env:env:A", "${"][:10]),
        ("${vault:x}", ["contains a ${...} with an unknown scheme"]),
        ("${yaml:x}", ["${yaml:...} is not supported"]),
        ("${https://host/x}", ["${https:...} is not supported"]),
        ("${file:}", ["contains a ${file:} without a path"]),
    ],
)  # fmt: skip
def test_says_what_is_wrong(text: str, messages: list[str]) -> None:
    """All of it, and no more of the text than names: it may hold a secret."""
    assert faults(text) == messages


@settings(max_examples=300)
@given(st.text(alphabet="${}a: ", max_size=12))
def test_what_a_file_would_resolve_or_refuse_is_refused_in_code(text: str) -> None:
    """What remains is the same in a file, but for a $$ before any other character than a {."""
    value, found = Substitution({"a": "?"}, Path()).expand(text)
    refers = bool(found) or "?" in value
    try:
        read = from_code(text)
    except SettingError:
        assert refers
    else:
        assert not refers
        assert (read == value) or "$$" in text
        assert read == re.sub(r"((?:\$\$)+)\{", lambda dollars: dollars[1][::2] + "{", text)


@looped(
    ("text", "value"),
    [("$", "$"), ("$$", "$$"), ("a$$b", "a$$b"), ("$5 {x}", "$5 {x}"), ("$X $(X)", "$X $(X)"), ("$ {", "$ {"),
     ("$${", "${"), ("$${x}", "${x}"), ("$$$${", "$${"), ("$$ $${", "$$ ${"), ("${", None), ("${}", None),
     ("${x", None), ("$$${x}", None), ("$${ ${", None), ("${DT-TOKEN}", None), ("${vault:x}", None)],
)  # fmt: skip
def test_a_dollar_in_code(text: str, value: str | None) -> None:
    if value is not None:
        assert from_code(text) == value
    else:
        with pytest.raises(SettingError, match=r"^contains \$\{, with which a reference begins"):
            from_code(text)


def test_names_the_variable_that_is_not_set() -> None:
    """As a value, for whoever knows that a secret belongs there."""
    _, found = Substitution(ENVIRON, Path()).expand("${NO} ${env:NO2} ${A} ${")
    assert [fault.unset for fault in found] == ["NO", "NO2", None]


@looped(
    ("content", "value"),
    [(b"x", "x"), (b"x\n", "x"), (b"x\n\n", "x\n"), (b"x\r\n", "x"), (b"x\r", "x\r"), (b"\n", ""), (b"", ""),
     (b" ${A} $$ \n", " ${A} $$ "), (b"\xc3\xa9", "é")],
)  # fmt: skip
def test_a_file_loses_one_newline(tmp_path: Path, content: bytes, value: str) -> None:
    (tmp_path / "secret").write_bytes(content)
    assert expand("${file:secret}", tmp_path) == value
    assert expand(f"${{file:{tmp_path}/secret}}") == value


def test_a_file_as_large_as_allowed(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * MAX_FILE)
    assert expand("${file:large}", tmp_path) == "x" * MAX_FILE
    (tmp_path / "large").write_bytes(b"x" * (MAX_FILE + 1))
    assert faults("${file:large}", tmp_path) == ["the file large is larger than 1 MiB"]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert faults("${file:pipe}", tmp_path) == ["the file pipe can't be read: it is not a regular file"]


def test_a_directory_does_not_stay_open(tmp_path: Path) -> None:
    before = len([*Path("/dev/fd").iterdir()])
    for _ in range(5):
        assert faults(f"${{file:{tmp_path}}}") == [f"the file {tmp_path} can't be read: Is a directory"]
    assert len([*Path("/dev/fd").iterdir()]) == before


def test_little_text_does_not_become_endlessly_much(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * MAX_FILE)
    assert set(faults("${file:large}" * 100, tmp_path)) == {"the substitutions put in more than 8 MiB in all"}


def document(text: str) -> Document:
    return parse(text.encode(), file="config.yaml", directory=Path(), environ=ENVIRON)


def test_every_kind_of_scalar_but_no_key() -> None:
    text = '${A}: ${A}\nb: \'${A}\'\nc: "${A}\\n"\nd: |\n  ${A}\n  $$\ne: ["x-${A}"]\nf: {g: "${A}"}\n'
    assert document(text).values == {
        "${A}": "one", "b": "one", "c": "one\n", "d": "one\n$\n", "e": ["x-one"], "f": {"g": "one"},
    }  # fmt: skip


def test_stays_a_text() -> None:
    """It is not read as YAML: the component's model decides what a text may stand for."""
    found = document("a: ${NUMBER}\nb: ${EMPTY}\nc: ${NO:-true}\nd: ${NO:-[a]}\n")
    assert found.values == {"a": "5", "b": "", "c": "true", "d": "[a]"}
    assert all(place.text is None for place in found.places.values())
