"""Charts as inline SVG that any width can stretch, with their labels as text of the page.

Nothing here is scripted: the lines are stretched (``preserveAspectRatio="none"``) under strokes that
do not scale, and labels are placed in per cent, so figures stay readable on a phone and on paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.runs.report.words import figure

WIDTH, HEIGHT = 1000.0, 1000.0
MOST_POINTS = 1_200
MOST_TABLE_ROWS = 40


@dataclass(frozen=True, slots=True)
class Series:
    """One line: its points (step, value), and what it looks like."""

    name: str
    points: Sequence[tuple[float, float]]
    style: str
    """``tuned``, ``base``, ``eval`` or ``third``: a colour with a meaning."""
    dots: bool = False
    faint: bool = False


@dataclass(frozen=True, slots=True)
class Tick:
    """A grid line and its label; at is in per cent of the axis."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Line:
    """A series ready to draw."""

    name: str
    path: str
    style: str
    dots: bool
    faint: bool


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart ready to draw, with the table that says the same."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    summary: str
    """For readers who do not see it."""
    columns: tuple[str, ...]
    table: tuple[tuple[str, ...], ...]
    left_out: int
    """Rows of the table that are not shown."""


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round values (1, 2, 2.5 or 5 times a power of ten) within low..high."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return []
    if high <= low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def smooth(points: Sequence[tuple[float, float]], weight: float = 0.6) -> list[tuple[float, float]]:
    """Exponential mean with its start corrected, so that the line does not lag at first."""
    found, mean, mass = [], 0.0, 0.0
    for x, y in points:
        mean = weight * mean + (1 - weight) * y
        mass = weight * mass + (1 - weight)
        found.append((x, mean / mass))
    return found


def thin(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most so many points: of each stretch the lowest and the highest, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    stretch = math.ceil(len(points) / (most / 2))
    kept = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return kept


def chart(title: str, series: Sequence[Series], *, unit: str = "", from_zero: bool = False) -> Chart | None:
    """A chart over steps, or None where no series has two points."""
    drawn = [s for s in series if s.points]
    if not any(len(s.points) > 1 for s in drawn):
        return None
    xs = [x for s in drawn for x, _ in s.points]
    ys = [y for s in drawn for _, y in s.points]
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    if from_zero:
        y0 = min(0.0, y0)
    pad = (y1 - y0) * 0.06 or abs(y1) * 0.1 or 1.0
    y0, y1 = (y0 if from_zero and y0 == 0 else y0 - pad), y1 + pad

    def place(x: float, y: float) -> tuple[float, float]:
        return (x - x0) / (x1 - x0 or 1) * WIDTH, (1 - (y - y0) / (y1 - y0)) * HEIGHT

    lines = []
    for s in drawn:
        places = [place(x, y) for x, y in thin(s.points)]
        if s.dots:
            marks = "".join(f"M{x:.1f},{y:.1f}h0" for x, y in places)
            lines.append(Line(f"{s.name}, points", marks, s.style, True, False))
        joined = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in places)
        lines.append(Line(s.name, joined, s.style, False, s.faint))
    table, left_out = _table([s for s in drawn if not s.name.endswith("smoothed")])
    shown = [s for s in drawn if not s.faint]
    return Chart(
        title=title,
        unit=unit,
        lines=tuple(lines),
        x_ticks=tuple(Tick((x - x0) / (x1 - x0 or 1) * 100, f"{x:,.0f}") for x in nice_ticks(x0, x1)),
        y_ticks=tuple(Tick((1 - (y - y0) / (y1 - y0)) * 100, figure(y, 3)) for y in nice_ticks(y0, y1, 4)),
        summary=f"{title} over steps {x0:,.0f} to {x1:,.0f}: "
        + "; ".join(
            f"{s.name} from {figure(s.points[0][1])} to {figure(s.points[-1][1])}{f' {unit}' if unit else ''}"
            for s in shown
        ),
        columns=("Step", *(s.name for s in drawn if not s.name.endswith("smoothed"))),
        table=table,
        left_out=left_out,
    )


def _table(series: Sequence[Series]) -> tuple[tuple[tuple[str, ...], ...], int]:
    values: dict[float, dict[str, float]] = {}
    for s in series:
        for x, y in s.points:
            values.setdefault(x, {})[s.name] = y
    steps = sorted(values)
    # Steps that carry more than one series (validations) are the ones to keep.
    every = max(1, math.ceil(len(steps) / MOST_TABLE_ROWS))
    kept = [x for i, x in enumerate(steps) if i % every == 0 or i == len(steps) - 1]
    rows = tuple(
        (f"{x:,.0f}", *(figure(values[x][s.name]) if s.name in values[x] else "" for s in series))
        for x in kept
    )
    return rows, len(steps) - len(kept)


@dataclass(frozen=True, slots=True)
class Interval:
    """A dot with its interval on a track; all in per cent of the track."""

    low: float
    value: float
    high: float


def on_track(low: float, value: float, high: float, *, start: float, end: float) -> Interval:
    """Place an interval on a track from start to end, cut at its ends."""

    def at(x: float) -> float:
        return min(100.0, max(0.0, (x - start) / (end - start or 1) * 100))

    return Interval(at(low), at(value), at(high))
