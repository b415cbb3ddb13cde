"""Line and bar charts as inline SVG: text only, coloured by the classes of the page's style sheet."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Callable, Sequence

Point = tuple[float, float]

# Of one bar with its name above it.
BAR_ROW, BAR_HEIGHT = 40, 12

# Classes `series-0` .. of the style sheet; further series start again.
COLOURS = 6
# The largest bar over the smallest from which their axis is bent.
SPREAD = 30
MAX_POINTS = 400
WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 28, 12, 46


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """A named line through points of ascending x; `marks` draws the points as well."""

    name: str
    points: Sequence[Point]
    marks: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level:
    """A horizontal dashed line, say a bound or a baseline."""

    name: str
    y: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
    """A named value with its interval, if there is one; bars of one group share a colour."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    group: str = ""


@dataclasses.dataclass(frozen=True)
class _Frame:
    """Maps data to pixels; `x` is a range of bent values."""

    x: tuple[float, float]
    y: tuple[float, float]
    bend: Callable[[float], float] = float

    def px(self, x: float) -> float:
        low, high = self.x
        return LEFT + (self.bend(x) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def py(self, y: float) -> float:
        low, high = self.y
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def line_chart(
    series: Sequence[Series], *, title: str, x_label: str, y_label: str, levels: Sequence[Level] = ()
) -> str:
    """A `<figure>` with an SVG and a legend; points that are not finite are left out.

    Raises:
      ValueError: nothing to draw.
    """
    lines = [dataclasses.replace(s, points=thin(_finite(s.points))) for s in series]
    lines = [line for line in lines if line.points]
    if not lines:
        raise ValueError(f"chart {title!r} has no points")
    frame = _frame(lines, levels)
    parts = [*_grid(frame), *_labels(x_label, y_label)]
    parts += [_level(frame, level) for level in levels]
    parts += [_polyline(frame, line, i) for i, line in enumerate(lines)]
    return _figure(title, HEIGHT, parts, _legend(lines, levels))


def bar_chart(bars: Sequence[Bar], *, title: str, x_label: str) -> str:
    """A `<figure>` with a horizontal bar for each value from 0, and a whisker from low to high.

    Where values are `SPREAD` times as large as others, the axis is linear up to about 1 and logarithmic beyond, to both
    sides, so that 0.5 and 500 are both seen and 0 has its place.

    Raises:
      ValueError: nothing to draw.
    """
    if not bars:
        raise ValueError(f"chart {title!r} has no bars")
    ends = [x for bar in bars for x in (0.0, bar.value, bar.low, bar.high) if x is not None]
    sizes = [abs(bar.value) for bar in bars if bar.value]
    bend = _bent if max(sizes, default=1) >= SPREAD * min(sizes, default=1) else float
    frame = _Frame(_widened(bend(min(ends)), bend(max(ends))), (0.0, 1.0), bend)
    groups = list(dict.fromkeys(bar.group for bar in bars))
    height = BAR_ROW * len(bars) + BOTTOM
    parts = [*_bar_ticks(frame, min(ends), max(ends), height)]
    for i, bar in enumerate(bars):
        parts += _bar(frame, bar, BAR_ROW * i, f"series-{groups.index(bar.group) % COLOURS}")
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, height - 6, x_label, "middle"))
    return _figure(title, height, parts, _legend([Series(name=g, points=()) for g in groups if g], ()))


def _figure(title: str, height: int, parts: Sequence[str], legend: str) -> str:
    name = html.escape(title)
    return (
        f'<figure class="chart"><svg viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{name}">{"".join(parts)}</svg><figcaption>{name}{legend}</figcaption></figure>'
    )


def _bent(value: float) -> float:
    """Symmetric logarithm."""
    return math.copysign(math.log10(1 + abs(value)), value)


def _bar(frame: _Frame, bar: Bar, top: float, colour: str) -> list[str]:
    zero, end = sorted((frame.px(0.0), frame.px(bar.value)))
    y = top + BAR_ROW - BAR_HEIGHT - 6
    parts = [
        _text(LEFT, y - 6, bar.name, "start"),
        _text(WIDTH - RIGHT, y - 6, f"{bar.value:,.4g}", "end"),
        f'<rect class="bar {colour}" x="{zero:.1f}" y="{y}" width="{end - zero:.1f}" height="{BAR_HEIGHT}"/>',
    ]
    if bar.low is not None and bar.high is not None:
        low, high, middle = frame.px(bar.low), frame.px(bar.high), y + BAR_HEIGHT / 2
        caps = "".join(f"M{x:.1f} {y + 2}V{y + BAR_HEIGHT - 2}" for x in (low, high))
        parts.append(f'<path class="whisker" d="M{low:.1f} {middle}H{high:.1f}{caps}"/>')
    return parts


def _bar_ticks(frame: _Frame, low: float, high: float, height: float) -> list[str]:
    """Round numbers inside the range; of a bent one 0 and the powers of ten."""
    powers = [10.0**n for n in range(7)]
    bent = (*(-p for p in powers), 0.0, *powers)
    parts = []
    for x in bent if frame.bend is _bent else ticks(*frame.x):
        if low <= x <= high:
            at = frame.px(x)
            parts.append(f'<path class="grid" d="M{at:.1f} 0V{height - BOTTOM}"/>')
            parts.append(_text(at, height - BOTTOM + 18, _tick(x), "middle"))
    return parts


def thin(points: Sequence[Point]) -> list[Point]:
    """At most `MAX_POINTS` points: means of equal runs, so that no spike is shown as typical."""
    if len(points) <= MAX_POINTS:
        return list(points)
    edges = [len(points) * i // MAX_POINTS for i in range(MAX_POINTS + 1)]
    runs = [points[a:b] for a, b in zip(edges, edges[1:])]
    return [(sum(x for x, _ in r) / len(r), sum(y for _, y in r) / len(r)) for r in runs]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers inside [low, high], 1, 2 or 5 times a power of ten apart.

    >>> ticks(0.3, 9.8)
    [2.0, 4.0, 6.0, 8.0]
    """
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _finite(points: Sequence[Point]) -> list[Point]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _frame(lines: Sequence[Series], levels: Sequence[Level]) -> _Frame:
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + [level.y for level in levels]
    margin = 0.05 * (max(ys) - min(ys))
    return _Frame(_widened(min(xs), max(xs)), _widened(min(ys) - margin, max(ys) + margin))


def _widened(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _grid(frame: _Frame) -> list[str]:
    parts = []
    for y in ticks(*frame.y):
        at = f"{frame.py(y):.1f}"
        parts.append(f'<path class="grid" d="M{LEFT} {at}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 6, float(at) + 4, _tick(y), "end"))
    for x in ticks(*frame.x):
        parts.append(_text(frame.px(x), HEIGHT - BOTTOM + 18, _tick(x), "middle"))
    return parts


def _tick(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def _labels(x_label: str, y_label: str) -> list[str]:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'transform="rotate(-90 12 {middle})"'
    return [
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, "middle"),
        _text(12, middle, y_label, "middle", turned),
    ]


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{html.escape(text)}</text>'


def _level(frame: _Frame, level: Level) -> str:
    return f'<path class="level" d="M{LEFT} {frame.py(level.y):.1f}H{WIDTH - RIGHT}"/>'


def _polyline(frame: _Frame, line: Series, index: int) -> str:
    places = [(f"{frame.px(x):.1f}", f"{frame.py(y):.1f}") for x, y in line.points]
    colour = f"series-{index % COLOURS}"
    path = "M" + "L".join(f"{x} {y}" for x, y in places)
    drawn = f'<path class="line {colour}" d="{path}"/>'
    if line.marks or len(places) == 1:
        drawn += "".join(f'<circle class="{colour}" cx="{x}" cy="{y}" r="3"/>' for x, y in places)
    return drawn


def _legend(lines: Sequence[Series], levels: Sequence[Level]) -> str:
    keys = [(f"key series-{i % COLOURS}", s.name) for i, s in enumerate(lines)]
    keys += [("key level", f"{level.name} {level.y:.2f}") for level in levels]
    items = (f'<li><span class="{c}"></span>{html.escape(name)}</li>' for c, name in keys)
    return f'<ul class="legend">{"".join(items)}</ul>'
