"""Generates the tables of docs/configuration.md and the file docs/configuration.schema.json from the models.

`python -m statsig_otel.plugin.cli.configuration_docs docs` rewrites both. In the page each generated section is between
`<!-- generated: NAME -->` and `<!-- end -->`; the rest is written by hand.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, get_args

from statsig_otel.config.model import Composed, Settings
from statsig_otel.config.reference import Key, json_schema, keys
from statsig_otel.config.validation import in_words
from statsig_otel.exporters.kafka.settings import KafkaSettings
from statsig_otel.exporters.local.debug import DebugSettings
from statsig_otel.exporters.local.file import FileSettings
from statsig_otel.exporters.otlp.settings import OtlpGrpcSettings, OtlpHttpSettings
from statsig_otel.plugin.settings.catalog import BUILT_IN
from statsig_otel.plugin.settings.exporters import ConfiguredExporter
from statsig_otel.plugin.settings.health_check import HealthCheckSettings
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings
from statsig_otel.plugin.settings.storage import FileStorageSettings
from statsig_otel.plugin.settings.telemetry import TelemetrySettings
from statsig_otel.plugin.settings.zpages import ZpagesSettings

TABLES: Final[Mapping[str, type[Settings]]] = {
    "statsig": StatsigReceiverSettings,
    "otlp_grpc": OtlpGrpcSettings,
    "otlp_http": OtlpHttpSettings,
    "kafka": KafkaSettings,
    "file": FileSettings,
    "debug": DebugSettings,
    "every exporter": ConfiguredExporter,
    "file_storage": FileStorageSettings,
    "health_check": HealthCheckSettings,
    "zpages": ZpagesSettings,
    "telemetry": TelemetrySettings,
}
"""The tables of the page. The keys that every exporter has are in a table of their own."""

_NOT_HERE: Final = "not here"
_PIPE: Final = r"\|"  # in a cell
_SECTION: Final = re.compile(r"(<!-- generated: ([a-z_ ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(page: str) -> str:
    """The page with its generated sections replaced.

    Raises:
        KeyError: A section has a name that is not in `TABLES`.
    """
    return _SECTION.sub(lambda found: f"{found[1]}\n{_section(found[2])}\n{found[3]}", page)


def schema() -> str:
    """The JSON Schema as a string."""
    return json.dumps(json_schema(BUILT_IN), indent=2) + "\n"


def _section(name: str) -> str:
    if name == _NOT_HERE:
        return markdown_table(("where", "key", "accepted", "instead"), _keys_not_here())
    return markdown_table(("key", "type", "default", "meaning"), (_row(key) for key in keys(TABLES[name])))


def _row(key: Key) -> tuple[str, ...]:
    return f"`{key.path}`", key.type, "required" if key.is_required else default_text(key.default), key.meaning


def default_text(default: Any) -> str:
    """A default as a user would write it, or an empty string if there is none."""
    if default in (None, ""):
        return ""
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def _keys_not_here() -> Iterator[tuple[str, ...]]:
    where: dict[tuple[str, str, str], list[str]] = {}
    for name, model in TABLES.items():
        for path, settings in _models(model, name):
            for key, advice in settings.unsupported.items():
                accepted = in_words(settings.implied.get(key, ()))
                where.setdefault((key, accepted, advice), []).append(path)
    for (key, accepted, advice), paths in where.items():
        yield ", ".join(paths), f"`{key}`", accepted, advice


def _models(model: type[Settings], path: str) -> Iterator[tuple[str, type[Settings]]]:
    """The model and the models nested in it, each with its path."""
    yield path, model
    for key, info in model.model_fields.items():
        if issubclass(model, Composed) and key not in model.shared_keys():
            continue
        for member in (info.annotation, *get_args(info.annotation)):
            if isinstance(member, type) and issubclass(member, Settings):
                yield from _models(member, f"{path}::{key}")


def markdown_table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', _PIPE) for cell in line)} |\n" for line in lines)


def main() -> None:
    """Write both files into the directory given as the first argument."""
    directory = Path(sys.argv[1])
    page = directory / "configuration.md"
    page.write_text(fill(page.read_text(encoding="utf-8")), encoding="utf-8")
    (directory / "configuration.schema.json").write_text(schema(), encoding="utf-8")


if __name__ == "__main__":
    main()
