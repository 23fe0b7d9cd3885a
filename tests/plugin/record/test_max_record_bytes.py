"""`max_record_bytes`: the original goes first; a change whose record is still too large becomes a dead letter."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from statsig_otel.config.errors import ConfigError
from statsig_otel.plugin.record.mapper import Mapped
from statsig_otel.plugin.record.record import MAX_RECORD_BYTES
from statsig_otel.plugin.webhook.body import parse
from tests.plugin.record.mapping_helpers import OBSERVED, mapper_of
from tests.plugin.record.record_helpers import attributes_in, record_in
from tests.plugin.record.test_arrays import body_of


def mapped(keys: str, body: bytes) -> Mapped:
    return mapper_of(keys).map(parse(body), OBSERVED)


def attributes_of(keys: str, body: bytes) -> dict[str, Any]:
    found = mapped(keys, body)
    assert not found.invalid
    return attributes_in(record_in(found.changes[0].records[0]).attributes)


def test_the_original_goes_first() -> None:
    """Its size and its hash tell whether somebody else's copy is the same."""
    body = body_of(other="ü" * 300_000)
    item = body[1:-1]
    attributes = attributes_of("include_original: true", body_of(other="x"))
    assert attributes["log.record.original"] == body_of(other="x")[1:-1].decode()
    assert "statsig.original.size" not in attributes
    attributes = attributes_of("include_original: true", body)
    assert "log.record.original" not in attributes
    assert attributes["statsig.original.size"] == len(item) > MAX_RECORD_BYTES
    assert attributes["statsig.original.sha256"] == sha256(item).hexdigest()
    assert attributes["change_event.label.name"] == "a"


def test_the_bound_is_exact() -> None:
    body = body_of(description="d" * 20_000)
    (change,) = mapped("user: full", body).changes
    size = len(change.records[0])
    assert mapped(f"max_record_bytes: {size}", body).changes == (change,)
    (invalid,) = mapped(f"max_record_bytes: {size - 1}", body).invalid
    assert invalid.text == body[1:-1]
    assert f"has {size} bytes, more than max_record_bytes ({size - 1})" in invalid.reason


def test_no_text_is_cut_and_the_neighbours_are_delivered() -> None:
    events = [json.loads(body_of(description="d" * length))[0] for length in (800_000, 900_000, 10)]
    found = mapped("include_original: false", json.dumps(events).encode())
    assert [len(change.records[0]) > 800_000 for change in found.changes] == [True, False]
    (invalid,) = found.invalid
    assert json.loads(invalid.text) == events[1]
    assert invalid.reason.startswith("is too large")


def test_templates_find_no_original_where_it_had_to_go() -> None:
    keys = """
        include_original: true
        mapping:
          attributes: {copy: "{log.record.original:-gone}", size: "{statsig.original.size}"}
          rename: {log.record.original: raw}
    """
    body = body_of(other="x" * 500_000)  # twice in the record
    attributes = attributes_of(keys, body)
    assert (attributes["copy"], attributes["size"]) == ("gone", len(body) - 2)
    assert "raw" not in attributes
    assert attributes_of(keys, body_of(other="x"))["raw"]


def test_one_of_several_records_that_is_too_large_keeps_the_change_together() -> None:
    """All records of a change are stored, or none: the dead letter is the change."""
    keys = 'impacted_services: {rules: {name: [a, "{metadata.long}"]}}'
    found = mapped(f"{{max_record_bytes: 10kB, {keys}}}", body_of(long="x" * 10_000))
    assert (len(found.changes), len(found.invalid)) == (0, 1)


@pytest.mark.parametrize("limit", ["0", "9999", "-1", "many"])
def test_a_limit_below_ordinary_records_is_an_error(limit: str) -> None:
    with pytest.raises(ConfigError, match="max_record_bytes"):
        mapper_of(f"max_record_bytes: {limit}")


MEASURE = """
import sys
from pathlib import Path
from statsig_otel.exporters.local.file import FileExporter, FileSettings
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings
from statsig_otel.plugin.webhook.body import parse

def peak():  # getrusage would give that of the process which started this one, if it is larger
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) >> 10

settings = {"include_original": True, "include_change_details": True, "mapping": {"attributes": {"x": "{metadata.x}"}}}
mapper = StatsigReceiverSettings.model_validate({"signing_secrets": [], **settings}).mapper()
body = Path(sys.argv[1]).read_bytes()
exporter = FileExporter("file", FileSettings(path=Path(sys.argv[2])))
exporter.start()
before = peak()
mapped = mapper.map(parse(body), 1)
for change in mapped.changes:
    for record in change.records:
        exporter.send(record, 1, 30)
print(peak() - before, len(mapped.changes), len(mapped.invalid))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metadata", "delivered", "most"),
    [
        (lambda: {"environments": ",".join(["a"] * 7_000_000)}, 1, 250),
        (lambda: {"tags": [1] * 7_000_000}, 1, 250),
        (lambda: {"x": ["a"] * 3_500_000, "targetApps": ",".join(["b"] * 100_000)}, 1, 250),
        (lambda: {"description": "Added rule x\n" * 1_100_000}, 0, 350),
        (lambda: {"description": "Groups added: " + ",".join(["a"] * 7_000_000)}, 0, 350),
        (lambda: {"x": [1.5] * 3_500_000}, 1, 250),
        (lambda: {"c": ":" * 260_000, "d": "\n" * 7_000_000}, 1, 250),
        (lambda: {"x": [{}] * 4_700_000}, 0, 100),
        (lambda: {"x": [[[]]] * 2_300_000}, 0, 100),
        (lambda: {"x": [{"": 0}] * 2_000_000}, 0, 100),
        (lambda: {f"k{index}": index for index in range(800_000)}, 0, 100),
        (lambda: {f"k{index}": [{}] * 80_000 for index in range(60)}, 0, 100),
    ],
)
def test_a_change_of_14_mb_takes_little_memory(
    metadata: Callable[[], dict[str, object]], delivered: int, most: int, tmp_path: Path
) -> None:
    """It was 1 to 4 GB."""
    megabytes, changes, invalid = taken_by([json.loads(body_of(**metadata()))[0]], tmp_path)
    assert (changes, invalid) == (delivered, 1 - delivered)
    assert megabytes < most


@pytest.mark.slow
def test_changes_of_14_mb_together_take_little_memory(tmp_path: Path) -> None:
    """Each is decoded when it is its turn."""
    (change,) = json.loads(body_of(x=[{}] * 80_000))
    megabytes, *outcome = taken_by([change] * 60, tmp_path)
    assert outcome == [60, 0]
    assert megabytes < 100


def taken_by(changes: list[object], folder: Path) -> tuple[int, int, int]:
    """MB over those of the process before it, of a fresh process, on its way to a file; and what became of them."""
    body = folder / "body.json"
    body.write_text(json.dumps(changes, separators=(",", ":")))
    arguments = [sys.executable, "-c", MEASURE, str(body), str(folder / "changes.jsonl")]
    ran = subprocess.run(
        arguments, capture_output=True, text=True, check=True, env={**os.environ, "MALLOC_ARENA_MAX": "1"}
    )
    megabytes, delivered, invalid = map(int, ran.stdout.split())
    return megabytes, delivered, invalid
