"""Line and bar charts as inline SVG: axes, round ticks, and tooltips with the values under the pointer. Pure text."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDTH, HEIGHT = 560, 280
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 16, 40
MAX_POINTS = 300
"""More points than this are averaged in groups: a screen cannot show more, and the file stays small."""

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line by name; css_class gives its color. Points are (x, y) in the order of x."""

    name: str
    css_class: str
    points: Sequence[Point]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A count with its name, and its label on the axis."""

    name: str
    tick: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A range of values with its ticks and their labels."""

    low: float
    high: float
    ticks: tuple[float, ...]
    labels: tuple[str, ...]

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high end."""
        return (value - self.low) / (self.high - self.low)


def line_chart(series: Sequence[Series], *, x_label: str, y_label: str, from_zero: bool = False) -> str:
    """An <svg> element with all series that have finite points; empty if none has."""
    lines = [thinned for one in series if (thinned := _thin(one)).points]
    if not lines:
        return ""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    x_axis = axis(min(xs), max(xs), whole=True)
    y_axis = axis(min(0.0, *ys) if from_zero else min(ys), max(ys))
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(f"{y_label} by {x_label}")}">',
        *_grid(x_axis, y_axis),
        *(_polyline(line, x_axis, y_axis) for line in lines),
        *_pointer_columns(lines, x_axis, y_axis, x_label),
        _axis_title(x_label),
        "</svg>",
    ]
    return "\n".join(parts)


def bar_chart(bars: Sequence[Bar], *, x_label: str, y_label: str) -> str:
    """An <svg> element with these bars side by side; empty without bars."""
    if not bars:
        return ""
    y_axis = axis(0.0, float(max(bar.count for bar in bars)))
    width = (WIDTH - LEFT - RIGHT) / len(bars)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(f"{y_label} by {x_label}")}">',
        *_value_lines(y_axis),
        *(_bar(bar, LEFT + place * width, width, y_axis) for place, bar in enumerate(bars)),
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>',
        _axis_title(x_label),
        "</svg>",
    ]
    return "\n".join(parts)


def _bar(bar: Bar, left: float, width: float, y_axis: Axis) -> str:
    top, bottom, middle = _y(y_axis, bar.count), HEIGHT - BOTTOM, left + width / 2
    return (
        f'<g class="series first"><rect x="{left + 2:.1f}" y="{top:.1f}" width="{width - 4:.1f}" '
        f'height="{bottom - top:.1f}"><title>{html.escape(bar.name)}: {bar.count:,}</title></rect></g>'
        f'<text class="tick" text-anchor="middle" x="{middle:.1f}" y="{bottom + 18}">{html.escape(bar.tick)}</text>'
    )


def axis(low: float, high: float, *, whole: bool = False) -> Axis:
    """An axis over the values with about five round ticks; a single value gets a margin on both sides."""
    if high <= low:
        margin = 1.0 if whole else abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
        if whole:
            low = max(0.0, low)
    step = _round_step((high - low) / 5)
    step = max(1.0, round(step)) if whole else step
    if not whole:
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    first = math.ceil(low / step - 1e-9)
    ticks = tuple(i * step for i in range(first, math.floor(high / step + 1e-9) + 1))
    return Axis(low=low, high=high, ticks=ticks, labels=tuple(_tick_label(tick, step) for tick in ticks))


def readable(value: float) -> str:
    """A number with four significant digits, short even if it is very small or large."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.4g}"
    if 1e4 <= abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:.3e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")


def _round_step(rough: float) -> float:
    """The smallest of 1, 2, 2.5, 5, 10 times a power of ten that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _tick_label(value: float, step: float) -> str:
    if value == 0:
        return "0"
    if max(abs(value), step) < 1e-3 or abs(value) >= 1e9:
        return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if step * 10**decimals % 1 > 1e-9:  # a step of 2.5, 0.25 ... needs one more
        decimals += 1
    return f"{value:,.{decimals}f}"


def _thin(series: Series) -> Series:
    """The series without gaps, averaged in groups to at most MAX_POINTS points."""
    points = [(x, y) for x, y in series.points if math.isfinite(x) and math.isfinite(y)]
    size = math.ceil(len(points) / MAX_POINTS)
    if size > 1:
        groups = [points[start : start + size] for start in range(0, len(points), size)]
        points = [(group[-1][0], math.fsum(y for _, y in group) / len(group)) for group in groups]
    return Series(name=series.name, css_class=series.css_class, points=points)


def _x(x_axis: Axis, value: float) -> float:
    return LEFT + x_axis.place(value) * (WIDTH - LEFT - RIGHT)


def _y(y_axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - y_axis.place(value) * (HEIGHT - TOP - BOTTOM)


def _grid(x_axis: Axis, y_axis: Axis) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = _value_lines(y_axis)
    for tick, label in zip(x_axis.ticks, x_axis.labels, strict=True):
        x = _x(x_axis, tick)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{bottom + 18}">{label}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    return parts


def _value_lines(y_axis: Axis) -> list[str]:
    parts = []
    for tick, label in zip(y_axis.ticks, y_axis.labels, strict=True):
        y = _y(y_axis, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{LEFT - 8}" y="{y + 4:.1f}">{label}</text>')
    return parts


def _polyline(line: Series, x_axis: Axis, y_axis: Axis) -> str:
    """The line; if there are few points, they are drawn as dots too: a single one would be invisible otherwise."""
    places = [(_x(x_axis, x), _y(y_axis, y)) for x, y in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in places) if len(places) <= 40 else ""
    return f'<g class="series {line.css_class}"><polyline points="{path}"/>{dots}</g>'


def _pointer_columns(lines: Sequence[Series], x_axis: Axis, y_axis: Axis, x_label: str) -> list[str]:
    """An invisible column for each x that shows all its values as a tooltip."""
    values: dict[float, list[str]] = {}
    for line in lines:
        for x, y in line.points:
            values.setdefault(x, []).append(f"{line.name}: {readable(y)}")
    centres = sorted(values)
    edges = [_x(x_axis, centres[0]), *(_x(x_axis, (a + b) / 2) for a, b in zip(centres, centres[1:], strict=False))]
    edges.append(_x(x_axis, centres[-1]))
    height = HEIGHT - TOP - BOTTOM
    columns = []
    for x, (left, right) in zip(centres, pairwise(edges), strict=True):
        title = html.escape("\n".join([f"{x_label} {x:,.0f}", *values[x]]))
        columns.append(
            f'<rect class="pointer" x="{left - 1:.1f}" y="{TOP}" width="{max(right - left, 2):.1f}" '
            f'height="{height}"><title>{title}</title></rect>'
        )
    return columns


def _axis_title(x_label: str) -> str:
    middle = (LEFT + WIDTH - RIGHT) / 2
    return f'<text class="label" text-anchor="middle" x="{middle:.0f}" y="{HEIGHT - 4}">{html.escape(x_label)}</text>'
