"""The YAML of a configuration file: plain values that can be written and read again, or a problem with its line."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Final

from statsig_otel.config.document import UNKNOWN, Document
from statsig_otel.config.errors import ConfigError, Path
from statsig_otel.config.resolved import _escaped, to_yaml
from statsig_otel.config.source import parse
from tests.fuzz import configuration
from tests.fuzz.targets import Check

LONGEST: Final = 1024
ENOUGH: Final = 10_000_000
TOKENS: Final = (
    *configuration.TOKENS, b'"true"', b"'null'", b'"1e3"', b"'0x1F'", b'"007"', b"'~'", b'".nan"', b"'- a'", b'"a: b"',
    b'"#"', b"''", b"'a #b'", b"? - a\n", b"\\u0085", b"\\x00", b"0b1", b"1_000", b"+.inf", b"'yes'", b"!!null ",
)  # fmt: skip


def seeds() -> Iterator[bytes]:
    """Something of everything that YAML has, and the files of the examples and other tests."""
    yield from configuration.files()
    yield from (
        b"a: 1\n'b': [x, {y: z}]\n\"c\": |\n  text\n  more\nd: >-\n  folded\n\n  text\n",
        b"a: &x {b: [1, &y two]}\nc: *x\nd: *y\n&k e: *k\n",
        b"%YAML 1.2\n---\n? a\n: - 1\n  - - 2\n    - 0x1F\n...\n",
        b"a: !!str 1\nb: !!int '7'\nc: !x y\n<<: *x\n",
        b'a: "\\x41\\u00e9\\U0001F600\\ud83d\\ude00\\\n  b"\n',
        b"a: .inf\nb: -.INF\nc: .nan\nd: ~\ne: 0o17\nf: 1e3\ng: True\nh: yes # no\n",
        b"a: 'true'\nb: [\"null\", '1e3', \"0o7\", '.inf']\nc: !!str 7\n'no': {'1': x}\n",
        b"a: &x ${env:GONE}\nb: [*x, '${file:x}', {c: *x}]\n",
        b"a: ${env:NAME}-$$-${PORT}\nb: ${file:x}\nc: ${env:GONE:-x}\n",
    )


def read(data: bytes, environ: Mapping[str, str]) -> Document:
    return parse(data, file=configuration.FILE, directory=FilePath("/nonexistent"), environ=environ)


def unknown(value: object, path: Path) -> Iterator[Path]:
    """The paths of the values that could not be read."""
    if value is UNKNOWN:
        yield path
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from unknown(item, (*path, key))


@contextmanager
def checking() -> Iterator[Check]:
    def check(data: bytes) -> None:
        try:
            document = read(data, configuration.ENVIRON)
        except ConfigError as error:
            configuration.check_problems(error, data)
            return
        if not document.problems:
            wrong = {problem.path for problem in document.unresolved if not problem.of_running}
            assert set(unknown(document.values, ())) == wrong, "a random string stands for what only systemd has"
        problems = (*document.problems, *document.unresolved)
        if problems:
            configuration.check_problems(ConfigError(problems), data)
        elif document.values:
            written = to_yaml(_escaped(document.values)).encode()
            again = read(written, {})
            assert repr(again.values) == repr(document.values)  # NaN equals NaN there
            assert not (*again.problems, *again.unresolved, *again.doubts)

    yield check
