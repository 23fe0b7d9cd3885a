"""What `--config` takes."""

from pathlib import Path

import pytest

from statsig_otel.config import ConfigError
from statsig_otel.config.document import Place
from statsig_otel.config.grammar import check
from statsig_otel.config.locations import read_all
from tests.config.models import COMPONENTS
from tests.looped import looped


def message(*locations: str | Path, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_all(locations, environ=environ)
    return str(caught.value)


def test_each_kind_of_source(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: {x: 1, y: 1}\n")
    (tmp_path / "b.yaml").write_text("a: {y: 2}\nb: '${file:beside}'\n")
    (tmp_path / "beside").write_text("here\n")
    found = read_all(
        [tmp_path / "a.yaml", f"file:{tmp_path}/b.yaml", "env:MORE", "yaml:c: {z: '${A}'}", str(tmp_path / "a.yaml")],
        environ={"MORE": "\nd: 4", "A": "one"},
    )
    assert found.values == {"a": {"x": 1, "y": 1}, "b": "here", "d": 4, "c": {"z": "one"}}
    assert found.place(("d",)) == Place("env:MORE", 2, "4", Path.cwd())
    assert found.place(("c", "z")) == Place("yaml:c", 1, directory=Path.cwd())
    assert found.place(("b",)) == Place(f"{tmp_path}/b.yaml", 2, directory=tmp_path)


def test_no_location_is_an_empty_document() -> None:
    assert read_all([], environ={}).values == {}


def test_colons_lead_further_down() -> None:
    text = "yaml:exporters::otlp/x::endpoint: a:1\nexporters::otlp/x::tls: {insecure: true}\nservice: {a::b: 1}\n"
    found = read_all([text], environ={})
    assert found.values == {
        "exporters": {"otlp/x": {"endpoint": "a:1", "tls": {"insecure": True}}},
        "service": {"a::b": 1},
    }
    lines = {path: place.line for path, place in found.places.items()}
    assert lines["exporters", "otlp/x"] == 1
    assert lines["exporters", "otlp/x", "endpoint"] == 1
    assert lines["exporters", "otlp/x", "tls", "insecure"] == 2
    assert not found.problems


def test_a_problem_of_such_a_text_has_the_path_that_was_meant() -> None:
    found = read_all(["yaml:exporters::debug::verbosity: ${NO}"], environ={})
    (problem,) = found.unresolved
    assert str(problem).splitlines()[0] == (
        "exporters::debug::verbosity: the environment variable NO is not set (yaml:exporters::debug::verbosity:1)"
    )


def test_one_file_may_be_named_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: [1]\n")
    assert read_all([path, path], environ={}) == read_all([path], environ={})


@looped(
    ("location", "text"),
    [
        ("", "an empty string is not a location (--config)\n  hint: name a file: it is read again at a reload"),
        ("-", "standard input (-) can't be read (--config)\n  hint: name a file: it is read again at a reload"),
        (
            "http://h/x",
            (
                "a configuration can't be read over http (--config)\n"
                "  hint: fetch it first: what a service starts with is its file"
            ),
        ),
        (
            "https://h/x",
            (
                "a configuration can't be read over https (--config)\n"
                "  hint: fetch it first: what a service starts with is its file"
            ),
        ),
        (
            "s3:x",
            (
                "there is no scheme 's3' (--config)\n"
                "  hint: there are PATH, file:PATH, env:NAME and yaml:TEXT; a path with a colon needs file: before it"
            ),
        ),
        (
            "env:NO",
            "the environment variable NO is not set (--config)\n  hint: set it to YAML, or remove --config env:NO",
        ),
        ("env:EMPTY", "the file is empty (env:EMPTY:1)"),
        ("env:BROKEN", "it is not UTF-8 (env:BROKEN)"),
        ("yaml:", "the file is empty (yaml:...:1)"),
        ("nowhere.yaml", "the file can't be read: No such file or directory (nowhere.yaml)"),
        ("file:nowhere.yaml", "the file can't be read: No such file or directory (nowhere.yaml)"),
    ],
)
def test_says_what_is_wrong(location: str, text: str) -> None:
    assert message(location, EMPTY="", BROKEN="\udcff") == text


def test_all_that_can_not_be_read_at_once() -> None:
    assert len(message("nowhere.yaml", "-", "env:NO").split("\n  hint")) == 3
    assert "nowhere.yaml" in message("nowhere.yaml", "-", "env:NO")


@pytest.mark.parametrize("text", ["s3cr3t", "{s3cr3t: a", "[s3cr3t]", "a b: s3cr3t: x", "a: s3cr3t: x"])
def test_the_name_of_a_text_does_not_show_it(text: str) -> None:
    assert "s3cr3t" not in message(f"yaml:{text}")


def test_a_path_with_a_colon_needs_its_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my:config.yaml").write_text("a: 1\n")
    assert read_all(["file:my:config.yaml"], environ={}).values == {"a": 1}
    assert read_all([Path("my:config.yaml")], environ={}).values == {"a": 1}
    assert "there is no scheme 'my'" in message("my:config.yaml")


def test_the_whole_of_several_locations_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        'receivers: {statsig: {signing_secrets: ["0123"]}}\nexporters: {debug: }\n'
        "service: {pipelines: {logs: {receivers: [statsig], exporters: [debug]}}}\n"
    )
    found = check(read_all([path, "yaml:exporters::debug::verbosity: detailed"], environ={}), COMPONENTS)
    assert found.exporters["debug"].model_dump() == {"verbosity": "detailed"}
