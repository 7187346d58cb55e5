"""Curves and histograms as inline SVG, coloured by classes of the page's style sheet, which knows light and dark."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from markupsafe import Markup, escape
from matplotlib.ticker import MaxNLocator

COLOURS = 8
"""Classes `c0` to `c7`; further numbers begin again, with dashes."""

POINTS = 400  # of a curve; of longer ones, the lowest and highest value of every stretch is drawn
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 170, 46, 8, 8, 22


def curves(values: Float[np.ndarray, "t n"], rate: float, title: str) -> Markup:
    """The numbers of a field over the seconds of an episode; gaps where they are not finite.

    Args:
        values: one curve per column.
        rate: steps per second, Hz.
        title: what a screen reader announces.
    """
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    if high - low < 1e-9 * max(1.0, abs(low)):
        low, high = low - 0.5, high + 0.5
    seconds = max(len(values) - 1, 1) / rate
    parts = [_axes(low, high, seconds)]
    for index, column in enumerate(values.T):
        dashed = " dashed" if index // COLOURS % 2 else ""
        for steps, found in _stretches(column):
            x = LEFT + (WIDTH - LEFT - RIGHT) * steps / max(len(values) - 1, 1)
            y = TOP + (HEIGHT - TOP - BOTTOM) * (high - found) / (high - low)
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))
            parts.append(f'<polyline class="c{index % COLOURS}{dashed}" points="{points}"/>')
    spoken = f"{title}: {values.shape[1]} numbers from {number(low)} to {number(high)} over {seconds:.1f} seconds"
    return _svg("".join(parts), WIDTH, HEIGHT, spoken)


def histogram(counts: list[int], title: str) -> Markup:
    """A small histogram without axes; what is there at all is visible."""
    width, height, most = 132, 26, max(*counts, 1)
    each = width / len(counts)
    bars = [
        f'<rect x="{i * each:.1f}" y="{height - tall:.1f}" width="{each - 0.4:.1f}" height="{tall:.1f}"/>'
        for i, count in enumerate(counts)
        if (tall := max(1.2, height * count / most) if count else 0.0)
    ]
    return _svg(f'<path class="grid" d="M0 {height}H{width}"/>' + "".join(bars), width, height, title)


def number(value: float | None) -> str:
    """A number in four digits, thousands and more without an exponent."""
    if value is None or not np.isfinite(value):
        return "–" if value is None else str(value).replace("nan", "NaN").replace("inf", "∞")
    text = f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
    return "0" if text == "-0" else text.replace("-", "−")


def _axes(low: float, high: float, seconds: float) -> str:
    """Lines and numbers of the values, and the seconds below."""
    right, floor, parts = WIDTH - RIGHT, HEIGHT - BOTTOM, []
    for tick in _ticks(low, high, 4):
        y = TOP + (floor - TOP) * (high - tick) / (high - low)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in _ticks(0, seconds, 5):
        x = LEFT + (right - LEFT) * tick / seconds
        unit = " s" if tick == 0 else ""
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 5}" text-anchor="middle">{number(tick)}{unit}</text>')
    return "".join(parts)


def _ticks(low: float, high: float, most: int) -> list[float]:
    found = MaxNLocator(nbins=most, steps=[1, 2, 5, 10]).tick_values(low, high)
    slack = 1e-9 * (high - low)
    return [round(float(tick), 12) for tick in found if low - slack <= tick <= high + slack]


def _stretches(column: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Steps and values of each finite stretch of a curve, thinned so that no spike is lost."""
    finite = np.isfinite(column)
    edges = np.flatnonzero(np.diff(finite, prepend=False, append=False))
    found = []
    for first, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        steps = np.arange(first, stop)
        if len(steps) > POINTS:
            parts = np.array_split(steps, POINTS // 2)
            chosen = [sorted((part[column[part].argmin()], part[column[part].argmax()])) for part in parts]
            steps = np.unique(np.array([first, *np.concatenate(chosen).tolist(), stop - 1]))
        found.append((steps, column[steps]))
    return found


def _svg(content: str, width: float, height: float, spoken: str) -> Markup:
    """Markup whose parts are numbers and our own words, except for the escaped `spoken`."""
    head = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(spoken)}">'
    return Markup(f"{head}{content}</svg>")
