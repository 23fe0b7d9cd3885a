"""docs/backends.md: every piece of configuration is valid, and the presets are those that there are."""

import re
from pathlib import Path
from typing import Final

from statsig_otel.config.grammar import check
from statsig_otel.config.source import parse
from statsig_otel.plugin.settings.catalog import COMPONENTS
from tests.looped import looped

ROOT: Final = Path(__file__).parent.parent
PAGE: Final = (ROOT / "docs" / "backends.md").read_text(encoding="utf-8")
PIECES: Final = re.findall(r"```yaml\n(exporters:\n.*?)```", PAGE, re.DOTALL)


@looped("piece", PIECES)
def test_a_piece_is_a_valid_exporter(piece: str) -> None:
    """Beside a receiver, in its pipeline, and with each variable that it names."""
    names = re.findall(r"\$\{env:(\w+)\}", piece)
    environ = {name: f"https://backend.example.com{'/v1/logs' * name.endswith('_LOGS_URL')}" for name in names}
    (exporter,) = re.findall(r"^  (\S+):$", piece, re.MULTILINE)
    whole = (
        f"{piece}receivers: {{statsig: {{signing_secrets: []}}}}\n"
        f"service: {{pipelines: {{logs: {{receivers: [statsig], exporters: [{exporter}]}}}}}}\n"
    )
    configuration = check(parse(whole.encode(), file="page", directory=ROOT, environ=environ), COMPONENTS)
    assert list(configuration.exporters) == [exporter]


def test_every_yaml_is_such_a_piece() -> None:
    assert len(PIECES) == PAGE.count("```yaml") == 7


def test_the_presets_are_told() -> None:
    presets = sorted(path.name for path in (ROOT / "examples" / "presets").glob("*.yaml"))
    readme = (ROOT / "examples" / "presets" / "README.md").read_text(encoding="utf-8")
    assert presets
    for name in presets:
        assert f"[{name}](../examples/presets/{name})" in PAGE
        assert f"[{name}]({name})" in readme


def test_what_a_page_of_ours_is_asked_for_is_there() -> None:
    """Links to headings of other pages."""
    for page, heading in re.findall(r"\]\((\w+\.md)(?:#([\w-]+))?\)", PAGE):
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        anchors = {
            re.sub(r"[^\w-]", "", title.lower().replace(" ", "-"))
            for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        }
        assert not heading or heading in anchors
