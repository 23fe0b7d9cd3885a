"""The types of the values that settings are made of."""

import json
import math
import pickle
from datetime import timedelta
from typing import Annotated, Self

import pytest
from pydantic import AfterValidator, BaseModel, Field, TypeAdapter, ValidationError, field_validator, model_validator

from statsig_otel.config import ConfigError, Duration, Opaque, Problem, Settings, Size
from statsig_otel.config.document import NOWHERE
from statsig_otel.config.units import AS_WRITTEN
from statsig_otel.config.validation import validate
from tests.looped import looped

SECRET = "s3cr3t-value"


class Sample(Settings):
    secret: Opaque
    several: list[Opaque] = Field(default_factory=list)


def test_a_secret_is_never_seen() -> None:
    sample = Sample(secret=Opaque(SECRET), several=[Opaque(SECRET)])
    shown = [str(sample), repr(sample), f"{sample.secret}", f"{sample.secret!r}", format(sample.secret),
             str(sample.model_dump()), sample.model_dump_json(), str(vars(sample))]  # fmt: skip
    assert all(SECRET not in text and "[REDACTED]" in text for text in shown)
    assert sample.secret.reveal() == SECRET


def test_a_secret_is_a_text_in_the_schema() -> None:
    assert Sample.model_json_schema()["properties"]["secret"] == {"title": "Secret", "type": "string"}
    assert Sample.model_validate_json(json.dumps({"secret": SECRET})).secret == Opaque(SECRET)


def test_errors_show_no_input() -> None:
    with pytest.raises(ConfigError) as caught:
        Sample.model_validate({"secret": [SECRET], "several": SECRET, SECRET[::-1]: SECRET})
    assert SECRET not in str(caught.value)


class Inner(Settings):
    word: str = "default"
    number: int = Field(default=1, le=5)


class Outer(Settings):
    inner: Inner = Inner()
    words: dict[str, Opaque] = Field(default_factory=dict)
    limit: int = 3

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.inner.number > self.limit:
            raise ValueError("number is over the limit")
        return self


class Program(BaseModel):
    """A model of a program that has settings of this package in it."""

    outer: Outer


GIVEN = {"inner": {"word": "a $${b} $"}, "words": {"c": "$${d}"}}
MEANT = Outer(inner=Inner(word="a $${b} $"), words={"c": Opaque("$${d}")})


def test_a_dollar_is_read_once_whoever_makes_the_settings() -> None:
    """By each of pydantic's ways, at every depth."""
    assert (MEANT.inner.word, MEANT.words["c"].reveal()) == ("a ${b} $", "${d}")
    for made in (
        Outer.model_validate(GIVEN),
        Outer.model_validate(MEANT),
        Outer.model_validate_json(json.dumps(GIVEN)),
        Outer.model_validate_strings(GIVEN),
        Outer(inner=Inner(number=2)).model_copy(update=GIVEN),
        MEANT.model_copy(update={"limit": 3}),
        MEANT.model_copy(deep=True),
        TypeAdapter(Outer).validate_python(GIVEN),
        TypeAdapter(Outer).validate_json(json.dumps(GIVEN)),
        TypeAdapter(list[Outer]).validate_python([GIVEN])[0],
        Program.model_validate({"outer": GIVEN}).outer,
        Program.model_validate_json(json.dumps({"outer": GIVEN})).outer,
        Program(outer=MEANT).outer,
    ):
        assert made == MEANT


def test_a_reference_is_refused_in_a_model_of_the_program_s_own() -> None:
    for given, where in (({"inner": {"word": "${b}"}}, "inner::word"), ({"words": {"c": "${env:D}"}}, "words::c")):
        with pytest.raises(ValidationError) as caught:
            Program.model_validate_json(json.dumps({"outer": given}))
        (error,) = caught.value.errors()
        assert error["loc"] == ("outer",)
        assert f"{where}: contains ${{, with which a reference begins" in error["msg"]
    with pytest.raises(ValidationError) as caught:
        Program.model_validate({"outer": {"inner": {"number": "many"}}})
    assert [error["loc"] for error in caught.value.errors()] == [("outer", "inner", "number")]


def test_a_copy_is_checked_and_keeps_the_rest() -> None:
    outer = Outer(inner=Inner(number=2), words={"c": SECRET})  # type: ignore[dict-item] # what a program may give
    copy = outer.model_copy(update={"limit": "4"})
    assert (copy.inner, copy.words, copy.limit) == (outer.inner, outer.words, 4)
    assert copy.model_fields_set == {"inner", "words", "limit"}
    for update, said in (
        ({"limit": 1}, "Outer: number is over the limit"),
        ({"limit": "many"}, "limit: must be a whole number"),
        ({"limits": 1}, "limits: unknown key"),
        ({"inner": {"number": 6}}, "inner::number: must be at most 5"),
        ({"inner": Inner(number=5)}, "Outer: number is over the limit"),
    ):
        with pytest.raises(ConfigError) as caught:
            outer.model_copy(update=update)
        assert str(caught.value).startswith(said)


def test_what_is_not_json_is_said_to_be_that() -> None:
    for written in ("", "{", b"\xff", "{'a': 1}"):
        with pytest.raises(ConfigError, match=r"^Outer: is not JSON: .* at line 1 column \d"):
            Outer.model_validate_json(written)
    with pytest.raises(ConfigError, match=r"^Outer: must be a mapping"):
        Outer.model_validate_json("[]")


class Picky(Settings):
    word: str

    @field_validator("word")
    @classmethod
    def _refuse(cls, word: str) -> str:
        raise ValueError(f"knows no {word}\nhere")


def test_what_a_validator_quotes_controls_no_terminal() -> None:
    with pytest.raises(ConfigError) as caught:
        Picky.model_validate({"word": "\x1b[2J\u202e é\x00"})
    assert caught.value.problems == (Problem(("word",), r"knows no \x1b[2J\u202e é\x00 here"),)


def test_a_wrong_secret_is_one_error() -> None:
    with pytest.raises(ConfigError) as caught:
        Sample.model_validate({"secret": 5})
    assert caught.value.problems == (Problem(("secret",), "must be a string"),)


def test_secrets_are_compared_by_their_text() -> None:
    assert Opaque("a") == Opaque("a") != Opaque("b")
    assert Opaque("a") != "a"
    assert len({Opaque("a"), Opaque("a")}) == 1
    assert pickle.loads(pickle.dumps(Opaque("a"))) == Opaque("a")


def test_a_check_of_a_secret_sees_it() -> None:
    def check(value: Opaque) -> Opaque:
        assert value.reveal() == SECRET
        return value

    assert TypeAdapter(Annotated[Opaque, AfterValidator(check)]).validate_python(SECRET) == Opaque(SECRET)


class Plain(Settings):
    number: int = 0
    ratio: float = 0.0
    switch: bool = False
    limit: int | None = None
    switches: list[bool] = Field(default_factory=list)
    words: bool | list[str] = False
    either: int | str = 0
    numbers: dict[str, int] = Field(default_factory=dict)


@looped(
    ("key", "texts", "value"),
    [
        ("number", ["5", " 5 ", "+5", "0x5", "0o5", "5.0", "5e0", 5, 5.0], 5),
        ("number", ["1_000", "1e3", 1000.0], 1000),
        ("limit", ["5", 5], 5),
        ("limit", [None], None),
        ("ratio", ["0.5", ".5", "5e-1", 0.5], 0.5),
        ("ratio", ["2", 2], 2.0),
        ("switch", ["true", "True", "TRUE", " true\n", True], True),
        ("switch", ["false", "False", "FALSE", False], False),
        ("either", ["5"], "5"),
        ("switches", [[True]], [True]),
        ("words", [["a"]], ["a"]),
        ("numbers", [{"a": 1}], {"a": 1}),
    ],
)
def test_a_text_is_what_yaml_makes_of_it(key: str, texts: list[object], value: object) -> None:
    """It may come from a variable."""
    for text in texts:
        found = getattr(Plain.model_validate({key: text}), key)
        assert (found, type(found)) == (value, type(value)), text


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("number", ["", "~", "null", "five", "0b1", "true", True, "5.5", "5s"], "number|integer"),
        ("limit", ["", "~", "null", "false", False], "number|integer"),
        ("either", [True], "whole number"),
        ("ratio", ["", "true", True, "half"], "number"),
        ("switch", ["", "~", "yes", "Yes", "on", "y", "t", "1", 1, "0", 0, 1.0, "tRuE", "enabled"], "True or False"),
    ],
)
def test_no_other_text_is_a_number_or_a_boolean(key: str, values: list[object], message: str) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=message):
            Plain.model_validate({key: value})


@pytest.mark.parametrize(
    ("value", "in_a_file", "in_code"),
    [("yes", "write true: to YAML 1.2 yes is a string", "write True"),
     ("Off", "write false: to YAML 1.2 Off is a string", "write False"),
     ("1", "write true", "write True"), (0, "write false", "write False"), ("maybe", None, None)],
)  # fmt: skip
def test_what_means_a_boolean_elsewhere_gets_a_hint(value: object, in_a_file: str | None, in_code: str | None) -> None:
    _, (problem,) = validate(Plain, {"switch": value}, (), NOWHERE)
    assert problem.hint == in_a_file
    with pytest.raises(ConfigError) as caught:
        Plain.model_validate({"switch": value})
    assert [problem.hint for problem in caught.value.problems] == [in_code]


DURATION = TypeAdapter(Duration)
SIZE = TypeAdapter(Size)


@looped(
    ("written", "seconds"),
    [("5s", 5), ("1.5h", 5400), ("2h45m", 9900), ("300ms", 0.3), ("1us", 1e-6), ("1µs", 1e-6), ("1μs", 1e-6),
     ("1ns", 1e-9), (".5s", 0.5), ("5.s", 5), ("0", 0), ("0s", 0), (0, 0), (0.0, 0), (timedelta(minutes=1), 60)],
)  # fmt: skip
def test_durations(written: object, seconds: float) -> None:
    assert math.isclose(DURATION.validate_python(written), seconds)
    assert math.isclose(DURATION.validate_python(written, context=AS_WRITTEN), seconds)


@looped(
    "written",
    ["", "5", "s", "-5s", "+5s", "5 s", " 5s", "5s ", "5S", "5d", "1e3s", "5s\n", "٥s", ".s", "9" * 400 + "h",
     "9" * 5000 + "s", 5, 1.5, True, None, [], {}, math.inf, math.nan, 10**5000],
)  # fmt: skip
def test_no_durations(written: object) -> None:
    with pytest.raises(ValidationError):
        DURATION.validate_python(written, context=AS_WRITTEN)


@pytest.mark.parametrize("seconds", [5, 1.5, 0, 9e9])
def test_in_code_a_number_is_seconds(seconds: float) -> None:
    assert DURATION.validate_python(seconds) == seconds


@pytest.mark.parametrize("given", ["5", True, None, math.inf, math.nan, pytest.param(10**5000, id="huge")])
def test_what_is_no_duration_in_code_either(given: object) -> None:
    with pytest.raises(ValidationError):
        DURATION.validate_python(given)


@looped(
    ("written", "size"),
    [("20MiB", 20 << 20), ("512KiB", 512 << 10), ("1 GiB", 1 << 30), ("1tib", 1 << 40), ("1kB", 1000), ("1MB", 10**6),
     ("7B", 7), ("1048576", 1 << 20), (1048576, 1 << 20), (0, 0),
     (2**63 - 1, 2**63 - 1), (str(2**53), 2**53)],
)  # fmt: skip
def test_sizes(written: object, size: int) -> None:
    assert SIZE.validate_python(written) == size


@looped(
    "written",
    ["", "MiB", "-1", "1.5MiB", "1  MiB", "1M", "5\n", "٥", "9" * 5000, -1, 1.5, True, None, 2**63, "8388608TiB", 1e19,
     "1K\u0131B", "1K\u0130B", "1\u212aB"],
)  # fmt: skip
def test_no_sizes(written: object) -> None:
    with pytest.raises(ValidationError):
        SIZE.validate_python(written)
