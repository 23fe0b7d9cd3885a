"""The values that hold a file's content are known by their place, so that they can be read anew."""

from pathlib import Path

from statsig_otel.config.locations import read_all


def read(folder: Path, *texts: str, environ: dict[str, str] | None = None) -> dict[str, str]:
    """What the file_backed of merged files stand for now, by their path."""
    paths = []
    for number, text in enumerate(texts):
        paths.append(folder / f"{number}.yaml")
        paths[-1].write_text(text)
    document = read_all(paths, environ=environ or {})
    return {"::".join(map(str, path)): string.expand()[0] for path, string in document.file_backed.items()}


def test_only_references_to_files_are_kept(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("one\n")
    text = 'a: ["${file:secret}", "${env:X}", "$${file:secret}", "plain"]\nb: {c: "x-${env:X}-${file:secret}"}'
    assert read(tmp_path, text, environ={"X": "y"}) == {"a::0": "one", "b::c": "x-y-one"}


def test_a_template_is_read_anew(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("one\n")
    (tmp_path / "config.yaml").write_text('a: "${file:secret}"')
    (string,) = read_all([tmp_path / "config.yaml"], environ={}).file_backed.values()
    secret.write_text("two")
    assert string.expand() == ("two", [])
    secret.unlink()
    text, faults = string.expand()
    assert text == ""
    assert "the file secret can't be read" in faults[0][0]


def test_a_value_that_another_file_replaces_is_none_any_more(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("one")
    first = 'a: {b: ["${file:secret}"], c: "${file:secret}"}'
    assert read(tmp_path, first, "a: {b: [plain]}") == {"a::c": "one"}
    assert read(tmp_path, first, "a:") == {}
    assert read(tmp_path, "a: {b: [plain]}", first) == {"a::b::0": "one", "a::c": "one"}


def test_a_text_s_keys_are_written_out(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("one")
    document = read_all([f"yaml:a::b: ['${{file:{tmp_path / 'secret'}}}']"], environ={})
    assert list(document.file_backed) == [("a", "b", 0)]
