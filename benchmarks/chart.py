"""Draws rates as horizontal bars, one group for each kind of work, as an SVG that needs nothing else."""

from __future__ import annotations

from html import escape

__all__ = ["draw"]

WIDTH, LABELS, VALUES = 860, 230, 90
BAR, GAP, HEAD = 16, 4, 44
ENGINE, HOST, BARE = "#1f6f8b", "#b9c6cc", "#8a8a8a"


def draw(rates: dict[str, dict[str, float]]) -> str:
    """`rates` gives, for each title, the rate of each server."""
    parts: list[str] = []
    x = 10
    for colour, text in ((ENGINE, "the engines"), (HOST, "the hosts' own"), (BARE, "the least there can be")):
        parts.append(f'<rect x="{x}" y="10" width="{BAR}" height="{BAR}" fill="{colour}"/>')
        parts.append(f'<text x="{x + BAR + 6}" y="{10 + BAR - 4}">{escape(text)}</text>')
        x += 190
    y = 10 + BAR + 14
    for title, servers in rates.items():
        unit = "MB/s" if "iB" in title else "thousands a second"
        parts.append(f'<text x="10" y="{y + 24}" class="title">{escape(title)}</text>')
        parts.append(f'<text x="{WIDTH - 10}" y="{y + 24}" class="unit">{unit}</text>')
        y += HEAD
        most = max(servers.values())
        for name, rate in sorted(servers.items(), key=lambda each: -each[1]):
            length = (WIDTH - LABELS - VALUES) * rate / most
            colour = ENGINE if name.startswith("engine") else BARE if "epoll" in name else HOST
            middle = y + BAR - 4
            parts.append(f'<text x="{LABELS - 8}" y="{middle}" class="name">{escape(name)}</text>')
            parts.append(f'<rect x="{LABELS}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>')
            parts.append(f'<text x="{LABELS + length + 6:.1f}" y="{middle}">{rate:.0f}</text>')
            y += BAR + GAP
        y += 14
    style = (
        "text{font:12px sans-serif;fill:#222}.title{font-size:15px;font-weight:bold}"
        ".name,.unit{text-anchor:end}.unit{fill:#666}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}">'
        f"<style>{style}</style>"
        f'<rect width="{WIDTH}" height="{y}" fill="white"/>{"".join(parts)}</svg>\n'
    )
