"""The parts of docs/configuration.md that are made from the models, and docs/configuration.schema.json.

`python -m statsig_otel.plugin.cli.configuration_docs docs` writes both anew. In the page a generated part stands
between `<!-- generated: NAME -->` and `<!-- end -->`; all around it is written by hand.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, get_args

from statsig_otel.config.model import Composed, Settings
from statsig_otel.config.reference import Key, json_schema, keys
from statsig_otel.exporters.local.debug import DebugSettings
from statsig_otel.exporters.local.file import FileSettings
from statsig_otel.exporters.otlp.settings import OtlpGrpcSettings, OtlpHttpSettings
from statsig_otel.plugin.settings.catalog import BUILT_IN
from statsig_otel.plugin.settings.delivery import ConfiguredExporter
from statsig_otel.plugin.settings.receiver import StatsigReceiverSettings
from statsig_otel.plugin.settings.storage import FileStorageSettings
from statsig_otel.plugin.settings.telemetry import TelemetrySettings

TABLES: Final[Mapping[str, type[Settings]]] = {
    "statsig": StatsigReceiverSettings,
    "otlp_grpc": OtlpGrpcSettings,
    "otlp_http": OtlpHttpSettings,
    "file": FileSettings,
    "debug": DebugSettings,
    "every exporter": ConfiguredExporter,
    "file_storage": FileStorageSettings,
    "telemetry": TelemetrySettings,
}
"""The tables of the page. What every exporter has is said once."""

_REFUSED: Final = "not here"
_PART: Final = re.compile(r"(<!-- generated: ([a-z_ ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(page: str) -> str:
    """The page with its generated parts made anew.

    Raises:
        KeyError: A part has a name that there is nothing for.
    """
    return _PART.sub(lambda part: f"{part[1]}\n{_part(part[2])}\n{part[3]}", page)


def schema() -> str:
    """The text of the JSON Schema."""
    return json.dumps(json_schema(BUILT_IN), indent=2) + "\n"


def _part(name: str) -> str:
    if name == _REFUSED:
        return _table(("where", "key", "instead"), _refused())
    return _table(("key", "type", "default", "meaning"), (_row(key) for key in keys(TABLES[name])))


def _row(key: Key) -> tuple[str, ...]:
    return f"`{key.path}`", key.type, "required" if key.is_required else default_text(key.default), key.meaning


def default_text(default: Any) -> str:
    """A default as it would be written; nothing for what has none."""
    if default in (None, ""):
        return ""
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def _refused() -> Iterator[tuple[str, ...]]:
    places: dict[tuple[str, str], list[str]] = {}
    for name, model in TABLES.items():
        for where, holder in _models(model, name):
            for key, advice in holder.all_refused().items():
                places.setdefault((key, advice), []).append(where)
    for (key, advice), wheres in places.items():
        yield ", ".join(wheres), f"`{key}`", advice


def _models(model: type[Settings], where: str) -> Iterator[tuple[str, type[Settings]]]:
    """The model and those in it, with where they stand."""
    yield where, model
    for key, info in model.model_fields.items():
        if issubclass(model, Composed) and key not in model.shared_keys():
            continue
        for member in (info.annotation, *get_args(info.annotation)):
            if isinstance(member, type) and issubclass(member, Settings):
                yield from _models(member, f"{where}::{key}")


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def main() -> None:
    """Write both files into the directory that is named."""
    directory = Path(sys.argv[1])
    page = directory / "configuration.md"
    page.write_text(fill(page.read_text(encoding="utf-8")), encoding="utf-8")
    (directory / "configuration.schema.json").write_text(schema(), encoding="utf-8")


if __name__ == "__main__":
    main()
