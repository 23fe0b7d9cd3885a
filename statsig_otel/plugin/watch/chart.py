"""Draws the last hour of the live page as SVG: a chart for each series that is not empty."""

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import Final

from statsig_otel.plugin.watch.history import MINUTES, SERIES

_BARS: Final = 40.0  # the height of the bars


def chart(minutes: Sequence[tuple[int, Sequence[float]]]) -> str:
    """The charts as HTML; in words what has none.

    Args:
        minutes: The history, as `History.minutes` returns it.
    """
    totals = [sum(values[number] for _, values in minutes) for number in range(len(SERIES))]
    none = [name[0].lower() + name[1:] for name, total in zip(SERIES, totals, strict=True) if not total]
    if len(none) == len(SERIES):
        return '<p class="quiet">Nothing has happened in the last hour.</p>'
    charts = "".join(_bars(number, name, minutes) for number, name in enumerate(SERIES) if totals[number])
    rest = f'<p class="quiet">Zero in the last hour: {", ".join(none)}.</p>' if none else ""
    return f'<div class="charts">{charts}</div>{rest}'


def _bars(series: int, name: str, minutes: Sequence[tuple[int, Sequence[float]]]) -> str:
    values = [values[series] for _, values in minutes]
    most, total = max(values), sum(values)
    peak = f", most at {_minute(minutes[values.index(most)][0])}: {most:.0f}"
    bars = "".join(
        f'<rect x="{x * 5}" y="{_BARS - _BARS * value / most:.1f}" width="4" height="{_BARS * value / most:.1f}">'
        f"<title>{_minute(at)}: {value:.0f}</title></rect>"
        for x, ((at, _), value) in enumerate(zip(minutes, values, strict=True))
        if value
    )
    label = escape(f"{name} in the last hour: {total:.0f}{peak}")
    return (
        f'<figure data-key="{series}"><figcaption>{escape(name)} <b>{total:,.0f}</b></figcaption>'
        f'<svg viewBox="0 0 {MINUTES * 5} {_BARS:.0f}" role="img" aria-label="{label}" class="series{series}" '
        f'preserveAspectRatio="none"><line x1="0" y1="{_BARS:.0f}" x2="{MINUTES * 5}" y2="{_BARS:.0f}"/>{bars}</svg>'
        '<div class="axis"><span>an hour ago</span><span>now</span></div></figure>'
    )


def _minute(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%H:%M UTC")
