"""Writes the queue directories of this version, which later versions have to open: in tests/data/queues.

VERSION is one without `audit_log`, VERSION-remembering one with it, whose schema is a later one.

    python -m tests.exporters.queue.write_directory [--check]

With --check it writes nothing there. It fails if a directory is missing, or is not what the code writes now.

The records and dead letters are those of an earlier version's directory; this version's code stores them anew.
test_earlier_version.py says what the directory contains.
"""

import argparse
import contextlib
import json
import shutil
import sqlite3
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from statsig_otel import __version__
from statsig_otel.exporters.consumer import Batch, Change, Invalid
from statsig_otel.exporters.queue import arrivals
from statsig_otel.exporters.queue.records import Stored
from tests.exporters.queue.helpers import PATIENCE, ROOT, consume, dead_letters_in, read_all, running
from tests.exporters.queue.test_earlier_version import (
    ARRIVALS,
    DIRECTORIES,
    MISSED,
    RECEIVERS,
    REMEMBERED,
    REMEMBERING,
    WRITTEN_AT,
)

_EXPORTERS = ("otlp", "archive")


def write(earlier: Path, directory: Path) -> None:
    """Store what an earlier version has in a new directory; with what came, if its name ends with `-remembering`."""
    with TemporaryDirectory(prefix="statsig-otel-") as name:
        copy = Path(shutil.copytree(earlier, Path(name) / "queue"))
        letters = dead_letters_in(copy / "queue.db")
        with running(copy, receivers=RECEIVERS, exporters=_EXPORTERS) as queue:
            *split, consent, banner, search, currency = read_all(queue.cursor("archive"))
    item, body, record, batch, damaged = letters
    now = WRITTEN_AT
    with running(directory, receivers=RECEIVERS, exporters=_EXPORTERS, clock=lambda: float(now)) as queue:
        otlp, archive = map(queue.cursor, _EXPORTERS)
        # Two that were refused, and are dead letters now.
        refused = tuple(Change(uid, (b"refused",)) for uid in ("d" * 32, "e" * 32))
        consume(queue, Batch("statsig", refused)).result(PATIENCE)
        for receiver, changes in (
            ("statsig", (_change(*split),)),
            ("statsig/eu", (_change(consent),)),
            ("statsig", (_change(banner), _change(search))),
            ("statsig/eu", (_change(currency),)),
        ):
            consume(queue, Batch(receiver, changes)).result(PATIENCE)
        now += 1
        for letter in (item, body):
            kept = Invalid(letter.content, letter.reason, whole_body=letter.kind == "body")
            consume(queue, Batch(letter.owner, (), (kept,))).result(PATIENCE)
        otlp.finish(otlp.read(2, 1 << 20), [record])
        archive.finish(archive.read(2, 1 << 20), [batch, damaged])
        otlp.finish(otlp.read(1, 1 << 20))
    if directory.name.endswith(REMEMBERING):
        with running(directory, receivers=REMEMBERED, exporters=_EXPORTERS, clock=lambda: float(now)) as queue:
            consume(queue, Batch("statsig", arrivals=ARRIVALS)).result(PATIENCE)
            queue.submit(
                lambda writer: arrivals.note(
                    writer, "statsig", MISSED, begin=WRITTEN_AT - 600, end=WRITTEN_AT, kept=WRITTEN_AT - 86_400
                )
            ).result(PATIENCE)
    for file in directory.iterdir():
        if file.name not in ("queue.db", "state.json"):
            file.unlink()


def content(directory: Path) -> dict[str, object]:
    """All that the code has written into a directory of a stopped queue, but the number of its process."""
    found: dict[str, object] = {"files": sorted(file.name for file in directory.iterdir())}
    found |= {f"state.json {key}": value for key, value in json.loads((directory / "state.json").read_text()).items()}
    found["state.json pid"] = type(found.get("state.json pid"))
    database = f"{(directory / 'queue.db').absolute().as_uri()}?immutable=1"
    with contextlib.closing(sqlite3.connect(database, uri=True)) as connection:
        for name in ("user_version", "application_id", "auto_vacuum", "page_size"):
            found[name] = connection.execute(f"PRAGMA {name}").fetchone()
        found["the tables and their rows"] = list(connection.iterdump())
    return found


def check(directory: Path) -> None:
    """Exit with a sentence if a version's directory is missing, or is not what this code writes."""
    how = "python -m tests.exporters.queue.write_directory writes it"
    if not directory.is_dir():
        sys.exit(f"{directory} is missing, and every later version has to open it: {how}")
    with TemporaryDirectory(prefix="statsig-otel-") as name:
        written = Path(name) / directory.name
        write(_earlier(directory), written)
        kept, new = content(directory), content(written)
    if differing := [name for name in {**kept, **new} if kept.get(name) != new.get(name)]:
        sys.exit(f"{directory} is not what this code writes ({', '.join(differing)}): {how} anew")


def _earlier(directory: Path) -> Path:
    return [one for one in DIRECTORIES if one != directory][-1]


def _change(*records: Stored) -> Change:
    return Change(records[0].uid.hex(), tuple(record.payload for record in records))


def main() -> None:
    """Write the directories of this version, or check them; older ones of the same version are replaced."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only fail if a directory is not what would be written")
    only_check = parser.parse_args().check
    for name in (__version__, __version__ + REMEMBERING):
        directory = ROOT / "tests" / "data" / "queues" / name
        if only_check:
            check(directory)
            continue
        earlier = _earlier(directory)
        shutil.rmtree(directory, ignore_errors=True)
        write(earlier, directory)
        print(f"{directory.relative_to(ROOT)} has what {earlier.name} has, written by version {__version__}")


if __name__ == "__main__":
    main()
