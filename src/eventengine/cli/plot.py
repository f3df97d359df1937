"""A chart of lines over time, as an SVG that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

__all__ = ["draw"]

WIDTH: Final = 860
LEFT, RIGHT, TOP, HEIGHT, BOTTOM = 66, 24, 116, 340, 54
KEY: Final = 280
LINES: Final = ("#c2573a", "#1f6f8b", "#e3a857", "#6cb7cf")  # stock is warm, bounded is cool


def draw(series: Mapping[str, Sequence[tuple[float, float]]], quota: float) -> str:
    """`series` gives, for each name, the seconds and MiB of its points; `quota`, in MiB, is a line of its own."""
    points = [point for each in series.values() for point in each]
    most_seconds = max((time for time, _ in points), default=1.0)
    sizes = _steps(max([quota, *(size for _, size in points)]))
    most_size = sizes[-1]

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / most_seconds

    def y(value: float) -> float:
        return TOP + HEIGHT * (1 - value / most_size)

    parts = [f'<text x="{LEFT}" y="30" class="title">Resident memory of web sites under attack</text>']
    for value in sizes:
        parts.append(f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" class="size">{value:g}</text>')
    parts += [
        f'<text x="{x(value):.1f}" y="{TOP + HEIGHT + 20}" class="time">{value:g}</text>'
        for value in _steps(most_seconds)
        if value <= most_seconds
    ]
    parts.append(f'<text x="{LEFT - 8}" y="{TOP - 14}" class="size unit">MiB</text>')
    parts.append(f'<text x="{x(most_seconds / 2):.1f}" y="{TOP + HEIGHT + 42}" class="time unit">seconds</text>')
    parts.append(f'<path d="M{LEFT} {y(quota):.1f}H{WIDTH - RIGHT}" class="quota"/>')
    for number, (name, values) in enumerate(series.items()):
        colour = LINES[number % len(LINES)]
        line = " ".join(f"{x(time):.1f},{y(size):.1f}" for time, size in values)
        parts.append(f'<polyline points="{line}" stroke="{colour}"><title>{escape(name)}</title></polyline>')
        left, baseline = LEFT + KEY * (number // 2), 54 + 20 * (number % 2)
        peak = max((size for _, size in values), default=0.0)
        parts.append(f'<path d="M{left} {baseline - 4}h22" stroke="{colour}" class="key"/>')
        parts.append(f'<text x="{left + 30}" y="{baseline}">{escape(name)}: at most {peak:.0f} MiB</text>')
    left = LEFT + KEY * ((len(series) + 1) // 2)
    parts.append(
        f'<path d="M{left} 50h22" class="quota"/><text x="{left + 30}" y="54">the quota, {quota:g} MiB</text>'
    )
    height = TOP + HEIGHT + BOTTOM
    style = (
        "text{font:12px sans-serif;fill:#222}.title{font-size:15px;font-weight:bold}.size{text-anchor:end}"
        ".time{text-anchor:middle}.unit{fill:#666}.grid{stroke:#e4e8ea}.quota{stroke:#888;stroke-dasharray:4 4}"
        "polyline{fill:none;stroke-width:2.5;stroke-linejoin:round}.key{stroke-width:3}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">'
        f"<style>{style}</style>"
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _steps(most: float) -> list[float]:
    """Round values, some four to eight of them, from 0 to the first that is not below `most`."""
    step = 10.0 ** math.floor(math.log10(max(most, 1.0)))
    step *= next((part for part in (0.2, 0.5) if most <= 8 * part * step), 1.0)
    return [number * step for number in range(math.ceil(most / step) + 1)]
