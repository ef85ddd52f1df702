"""Small line charts as SVG: text in a file, drawn the same way everywhere, no library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 28, 40
LEGEND_ROW = 16
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666", "#000000")  # Okabe and Ito 2008
TICKS = (1, 2, 3, 5, 10, 20, 30, 60, 100, 300, 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """points: (x, y). marks: dots alone, for what is not a curve."""

    name: str
    points: Sequence[tuple[float, float]]
    marks: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """y from `low` to 1; x on a log scale from 1."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    low: float = 0.0


def draw(charts: Sequence[Chart]) -> str:
    """Charts side by side with one legend, as the text of an SVG file."""
    names = list(dict.fromkeys(line.name for chart in charts for line in chart.lines))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    width, height = WIDTH * len(charts), HEIGHT + LEGEND_ROW * math.ceil(len(names) / 4) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11"><rect width="{width}" height="{height}" fill="white"/>'
    ]
    for i, chart in enumerate(charts):
        parts.append(f'<g transform="translate({i * WIDTH} 0)">{_chart(chart, colours)}</g>')
    for i, name in enumerate(names):
        x, y = LEFT + (i % 4) * (width - LEFT) / 4, HEIGHT + LEGEND_ROW * (i // 4 + 0.5)
        parts.append(
            f'<rect x="{x:.0f}" y="{y - 8:.0f}" width="10" height="10" fill="{colours[name]}"/>'
            f'<text x="{x + 14:.0f}" y="{y + 1:.0f}">{escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


def _chart(chart: Chart, colours: dict[str, str]) -> str:
    most = max((x for line in chart.lines for x, _ in line.points), default=10.0)
    inner = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        across = math.log(max(x, 1)) / math.log(max(most, 2))
        up = (max(y, chart.low) - chart.low) / (1 - chart.low)
        return LEFT + across * inner[0], TOP + (1 - up) * inner[1]

    parts = [f'<text x="{LEFT}" y="16" font-size="12" font-weight="bold">{escape(chart.title)}</text>']
    for i in range(6):
        value = chart.low + i * (1 - chart.low) / 5
        _, y = place(1, value)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
            f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{value:.2f}</text>'
        )
    for tick in (t for t in TICKS if t <= most):
        x, _ = place(tick, chart.low)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{tick}</text>')
    parts.append(f'<text x="{LEFT + inner[0] / 2}" y="{HEIGHT - 10}" text-anchor="middle">{escape(chart.x)}</text>')
    middle = TOP + inner[1] / 2
    parts.append(
        f'<text x="12" y="{middle}" text-anchor="middle" transform="rotate(-90 12 {middle})">{escape(chart.y)}</text>'
    )
    return "".join([*parts, *(_line(line, colours[line.name], place) for line in chart.lines)])


def _line(line: Line, colour: str, place: object) -> str:
    assert callable(place)
    at = [place(x, y) for x, y in line.points]
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in at)
    if line.marks:
        return dots
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>' + (
        dots if len(at) < 12 else ""
    )
