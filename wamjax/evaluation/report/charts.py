"""Charts as inline SVG, coloured by classes of the page's style sheet, so that they follow light and dark.

Every chart is drawn for one narrow column; the page lays several side by side, and text keeps its size.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape

MOST_POINTS = 300  # of a curve; more are averaged in runs


@dataclasses.dataclass(frozen=True)
class Bar:
    """One bar: name, length, text at its end, class that colours it, interval in the unit of `value`."""

    label: str
    value: float
    text: str
    css: str
    interval: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Line:
    """One curve; `x` and `y` have equal length."""

    label: str
    css: str
    x: Sequence[float]
    y: Sequence[float]


def bars(rows: Sequence[Bar], *, maximum: float, title: str, width: int = 270) -> Markup:
    """Horizontal bars from 0 to `maximum`, each under its name and value; whiskers show the intervals.

    Args:
      rows: from top to bottom.
      maximum: value at the right end of the track.
      title: what a screen reader announces; the values are appended.
      width: of the drawing, in the units of its text (about pixels).
    """
    step, thick, margin = 34, 9, 2
    track = width - 2 * margin
    scale = track / (maximum or 1.0)
    parts = []
    for i, row in enumerate(rows):
        text, y = i * step + 12, i * step + 18
        parts.append(f'<text x="{margin}" y="{text}">{escape(row.label)}</text>')
        parts.append(f'<text class="value" x="{width - margin}" y="{text}" text-anchor="end">{escape(row.text)}</text>')
        parts.append(_rect(margin, y, track, thick, "track"))
        parts.append(_rect(margin, y, row.value * scale, thick, row.css))
        if row.interval:
            low, high = (margin + bound * scale for bound in row.interval)
            middle, ends = y + thick / 2, f"M{low:.1f} {y + 1}v{thick - 2}M{high:.1f} {y + 1}v{thick - 2}"
            # The halo under the whisker keeps it legible on a bar of any colour.
            parts += [f'<path class="{css}" d="M{low:.1f} {middle}H{high:.1f}{ends}"/>' for css in ("halo", "whisker")]
    spoken = f"{title}: " + ", ".join(f"{row.label} {row.text}" for row in rows)
    return _svg("".join(parts), width, len(rows) * step, spoken)


@dataclasses.dataclass(frozen=True)
class Axes:
    """The frame of a curve chart: the ranges of the data and where they lie in the drawing."""

    x_high: float
    y_low: float
    y_high: float
    logarithmic: bool
    width: int = 360
    height: int = 230
    left: int = 50
    top: int = 8
    right: int = 12
    bottom: int = 34

    def x(self, value: float) -> float:
        """Horizontal place of a value."""
        return self.left + (self.width - self.left - self.right) * value / self.x_high

    def y(self, value: float) -> float:
        """Vertical place of a value; values outside the range lie on its border."""
        value = min(max(value, self.y_low), self.y_high)
        low, high, v = (math.log(u) if self.logarithmic else u for u in (self.y_low, self.y_high, value))
        return self.top + (self.height - self.top - self.bottom) * (high - v) / (high - low)

    def points(self, x: np.ndarray, y: np.ndarray) -> str:
        """A curve as the points of a polyline."""
        return " ".join(f"{self.x(float(a)):.1f},{self.y(float(b)):.1f}" for a, b in zip(x, y, strict=True))

    def draw(self) -> str:
        """Grid lines and numbers."""
        right, floor, parts = self.width - self.right, self.height - self.bottom, []
        for tick in (log_ticks if self.logarithmic else ticks)(self.y_low, self.y_high):
            y = self.y(tick)
            parts.append(f'<path class="grid" d="M{self.left} {y:.1f}H{right}"/>')
            parts.append(f'<text x="{self.left - 7}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        for tick in ticks(0, self.x_high, 3):
            parts.append(f'<text x="{self.x(tick):.1f}" y="{floor + 16}" text-anchor="middle">{tick:,.0f}</text>')
        middle = (self.left + right) / 2
        parts.append(f'<text x="{middle}" y="{self.height - 3}" text-anchor="middle">training step</text>')
        return "".join(parts)


def curves(lines: Sequence[Line], *, title: str, logarithmic: bool = True) -> Markup:
    """Curves over training steps: the raw values faint, their moving average on top.

    The vertical axis is logarithmic where all values are positive and `logarithmic` is set.
    """
    raw = [_thin(line.x, line.y) for line in lines]
    averages = [_smooth(y) for _, y in raw]
    logarithmic = logarithmic and all(bool(np.all(y > 0)) for _, y in raw)
    low, high = _range([y for _, y in raw], averages, logarithmic)
    axes = Axes(max(float(x[-1]) for x, _ in raw) or 1.0, low, high, logarithmic)
    parts, ends = [axes.draw()], []
    for line, (x, y), average in zip(lines, raw, averages, strict=True):
        parts.append(f'<polyline class="raw {line.css}" points="{axes.points(x, y)}"/>')
        parts.append(f'<polyline class="curve {line.css}" points="{axes.points(x, average)}"/>')
        ends.append(f"{line.label} from {average[0]:.3g} to {average[-1]:.3g}")
    return _svg("".join(parts), axes.width, axes.height, f"{title} over training steps: " + ", ".join(ends))


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside a range, roughly `about` of them."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(s - rough))
    return [round(k * step, 12) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers inside a range for a logarithmic axis; evenly spaced ones where it is too narrow."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        found = [round(m * 10.0**k, 12) for k in decades for m in digits if low <= m * 10.0**k <= high]
        if len(found) >= 3:
            return found
    return ticks(low, high)


def _range(curves: Sequence[np.ndarray], averages: Sequence[np.ndarray], logarithmic: bool) -> tuple[float, float]:
    """Lowest and highest value to show: all averages, and the raw values but for rare spikes."""
    raw, average = np.concatenate(curves), np.concatenate(averages)
    low = min(float(average.min()), float(np.percentile(raw, 0.5)))
    high = max(float(average.max()), float(np.percentile(raw, 99.5)))
    if logarithmic:
        return low / 1.06, high * 1.06
    low, high = min(low, 0.0), max(high, 0.0)
    return low, high + (0.06 * (high - low) or 1.0)


def _thin(x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """At most `MOST_POINTS` points, each the mean of a run of neighbours."""
    pieces = min(len(x), MOST_POINTS)
    means = [[piece.mean() for piece in np.array_split(np.asarray(values, float), pieces)] for values in (x, y)]
    return np.asarray(means[0]), np.asarray(means[1])


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving average over about a twentieth of the curve; the window shrinks at the ends."""
    window = np.ones(max(len(values) // 20, 1))
    return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")


def _rect(x: float, y: float, width: float, height: float, css: str) -> str:
    return f'<rect class="{css}" x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height}" rx="2"/>'


def _svg(body: str, width: int, height: int, spoken: str) -> Markup:
    return Markup(f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(spoken)}">{body}</svg>')
