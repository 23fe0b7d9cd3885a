"""Exporters in the style of what vendors' own pages show for a Collector: they are valid, or it is said what to change.

Each file of vendors/ is pasted beside a receiver. Beside it is what is said: errors, or the warnings of a valid one.
"""

import re
from pathlib import Path
from typing import Final

from statsig_otel.config import ConfigError
from statsig_otel.config.grammar import check
from statsig_otel.config.merging import merge
from statsig_otel.config.source import parse
from statsig_otel.plugin.settings.catalog import COMPONENTS
from statsig_otel.plugin.settings.doubts import doubts
from tests.looped import looped

VENDORS: Final = Path(__file__).parent / "vendors"
RECEIVER: Final = b"receivers: {statsig: {signing_secrets: [webhook-s3cr3t]}}"


def said_of(path: Path) -> list[str]:
    """What is said of a file, with each variable that it names set."""
    text = path.read_text(encoding="utf-8")
    address = "gateway.example.com:443" if "otlp/elastic" in text else "https://gateway.example.com/otlp"
    environ = {name: address if "ENDPOINT" in name else "s3cr3t" for name in re.findall(r"\$\{env:(\w+)\}", text)}
    receiver = parse(RECEIVER, file="receiver.yaml", directory=VENDORS, environ={})
    pasted = parse(text.encode(), file="config.yaml", directory=VENDORS, environ=environ)
    document = merge([receiver, pasted])
    try:
        return [f"warning: {sentence}" for sentence in doubts(check(document, COMPONENTS), document)]
    except ConfigError as error:
        return str(error).splitlines()


@looped("name", sorted(path.stem for path in VENDORS.glob("*.yaml")))
def test_a_block_is_valid_or_it_is_said_what_to_change(name: str) -> None:
    said = said_of(VENDORS / f"{name}.yaml")
    expected = VENDORS / f"{name}.txt"
    assert said == (expected.read_text(encoding="utf-8").splitlines() if expected.exists() else [])
    assert "s3cr3t" not in "\n".join(said)
    errors = [line for line in said if not line.startswith(("warning: ", "  hint: "))]
    hints = [line for line in said if line.startswith("  hint: ")]
    assert len(errors) <= len(hints) + sum("; use " in line for line in errors), "each error says what to do"
