"""Generates the table of docs/metrics.md from the declarations of the metrics.

`python -m statsig_otel.plugin.cli.metrics_docs docs` rewrites it. The table is between `<!-- generated: metrics -->`
and `<!-- end -->`; the rest of the page is written by hand.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from statsig_otel import _telemetry  # noqa: F401 - declares the metrics
from statsig_otel._instruments import METRICS, Metric
from statsig_otel.plugin.cli.configuration_docs import markdown_table

_BEGIN: Final = "<!-- generated: metrics -->\n"
_END: Final = "<!-- end -->"
_HEAD: Final = ("OpenTelemetry", "Prometheus", "kind", "unit", "attributes", "meaning")


def fill(page: str) -> str:
    """The page with its table replaced."""
    before, _, rest = page.partition(_BEGIN)
    behind = rest.partition(_END)[2]
    return f"{before}{_BEGIN}\n{markdown_table(_HEAD, _rows())}\n{_END}{behind}"


def _rows() -> Iterator[tuple[str, ...]]:
    for metric in METRICS.values():
        yield _row(metric)


def _row(metric: Metric) -> tuple[str, ...]:
    attributes = ", ".join(f"`{name}`" for name in metric.attributes)
    unit = f"`{metric.unit}`" if metric.unit else ""
    return (
        f"`{metric.name}`", f"`{metric.prometheus_name}`", metric.kind, unit, attributes, metric.description
    )  # fmt: skip


def main() -> None:
    """Write the page in the directory given as the first argument."""
    page = Path(sys.argv[1]) / "metrics.md"
    page.write_text(fill(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
