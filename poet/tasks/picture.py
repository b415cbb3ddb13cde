"""The layouts of tasks as a picture (SVG): one bar for each task, one block for each segment."""

from __future__ import annotations

import html
from collections.abc import Mapping

from poet import streams
from poet.tasks.layout import OUTPUT, Layout, Segment

WIDTH, ROW, BAR, MARGIN = 1160, 46, 20, 12
SMALLEST = 7  # Of a boundary token, in pixels.
TOKEN = "#9aa5b1"


def svg(layouts: Mapping[str, Layout]) -> str:
    """SVG of layouts by task.  Pale blocks are the bidirectional condition, full ones the output.

    Blocks of codes are as wide as they are long, to one scale; boundary tokens keep a width that can
    be seen, with their names in tooltips.
    """
    rows = [_row(name, layout, 34 + i * ROW, _scale(layouts)) for i, (name, layout) in enumerate(layouts.items())]
    height = 34 + ROW * len(rows) + MARGIN
    legend = (
        f'<text x="{MARGIN}" y="20">one position per id; pale: condition, attends both ways; full: output, '
        "causal, carries the loss; thin: boundary and control tokens</text>"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="12" fill="#333">'
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>{legend}{"".join(rows)}</svg>\n'
    )


def _scale(layouts: Mapping[str, Layout]) -> float:
    """Pixels per position, so that the longest row fits."""
    room = [
        (WIDTH - 2 * MARGIN - SMALLEST * sum(_small(s) for s in layout.segments))
        / sum(s.length for s in layout.segments if not _small(s))
        for layout in layouts.values()
    ]
    return min(room)


def _small(segment: Segment) -> bool:
    return segment.length == 1


def _row(name: str, layout: Layout, top: int, scale: float) -> str:
    x, parts = float(MARGIN), []
    for segment in layout.segments:
        width = SMALLEST if _small(segment) else segment.length * scale
        parts.append(_block(segment, x, top + 18, width))
        x += width
    title = f"{name.replace('_', ' ')}: {layout.length} positions, {layout.prefix_length} of them condition"
    return f'<text x="{MARGIN}" y="{top + 13}">{html.escape(title)}</text>{"".join(parts)}'


def _block(segment: Segment, x: float, y: int, width: float) -> str:
    stream = streams.in_layout(segment.stream)
    name = stream.name if stream else segment.stream
    colour = stream.colour if stream and segment.length > 1 else TOKEN
    opacity = 1.0 if segment.role == OUTPUT else 0.35
    grid = "x".join(map(str, segment.grid))
    about = segment.stream if segment.length == 1 else f"{segment.stream} {grid}"
    label = ""
    if width > 8 * len(name):
        label = (
            f'<text x="{x + width / 2:.1f}" y="{y + 14}" text-anchor="middle" '
            f'fill="{"#fff" if opacity == 1 else "#333"}">{name}</text>'
        )
    return (
        f'<g><title>{html.escape(about)}</title><rect x="{x:.1f}" y="{y}" width="{max(width - 1, 1):.1f}" '
        f'height="{BAR}" fill="{colour}" fill-opacity="{opacity}"/>{label}</g>'
    )
