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
    joined: bool = True
    """Whether a line goes through the points; else they stand alone."""


@dataclass(frozen=True, slots=True)
class Axis:
    """What a chart runs over, where that is not steps."""

    name: str = "Step"
    log: bool = False
    labels: tuple[str, ...] = ()
    """Names of places 0, 1, 2... where these are no numbers."""

    def at(self, x: float) -> float:
        """Where a value stands."""
        return math.log10(x) if self.log else x

    def ticks(self, low: float, high: float) -> list[tuple[float, str]]:
        """Values and their labels within low..high."""
        if self.labels:
            return [(i, name) for i, name in enumerate(self.labels) if low <= i <= high]
        if self.log:
            return [(x, figure(x, 3)) for x in log_ticks(low, high)]
        return [(x, self.words(x)) for x in nice_ticks(low, high)]

    def words(self, x: float) -> str:
        """A value as people read it."""
        if self.labels:
            return self.labels[round(x)]
        return f"{x:,.0f}" if float(x).is_integer() and abs(x) < 1e6 else figure(x, 3)


STEPS = Axis()


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
    axis: str = ""
    """What it runs over, where that is not steps."""


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


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Powers of ten within low..high, with their twos and fives where there is room."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for parts in ((1,), (1, 3), (1, 2, 5)):
        ticks = [round(m * 10.0**p, 12) for p in powers for m in parts]
        inside = [x for x in ticks if low * (1 - 1e-9) <= x <= high * (1 + 1e-9)]
        if len(inside) > most:
            break
        found = inside
    return found or [low, high]


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


def chart(
    title: str, series: Sequence[Series], *, unit: str = "", from_zero: bool = False, axis: Axis = STEPS
) -> Chart | None:
    """A chart over steps or another axis, or None where no series has two points."""
    drawn = [s for s in series if s.points]
    if not any(len(s.points) > 1 for s in drawn):
        return None
    xs = [axis.at(x) for s in drawn for x, _ in s.points]
    ys = [y for s in drawn for _, y in s.points]
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    if from_zero:
        y0 = min(0.0, y0)
    pad = (y1 - y0) * 0.06 or abs(y1) * 0.1 or 1.0
    if axis is not STEPS:  # points of their own kind must not lie on the frame
        room = (x1 - x0) * 0.04 or 0.5
        x0, x1 = x0 - room, x1 + room
    y0, y1 = (y0 if from_zero and y0 == 0 else y0 - pad), y1 + pad

    def place(x: float, y: float) -> tuple[float, float]:
        return (axis.at(x) - x0) / (x1 - x0 or 1) * WIDTH, (1 - (y - y0) / (y1 - y0)) * HEIGHT

    lines = []
    for s in drawn:
        places = [place(x, y) for x, y in thin(s.points)]
        if s.dots:
            marks = "".join(f"M{x:.1f},{y:.1f}h0" for x, y in places)
            name = f"{s.name}, points" if s.joined else s.name
            lines.append(Line(name, marks, s.style, True, s.faint))
        if not s.joined:
            continue
        joined = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in places)
        lines.append(Line(s.name, joined, s.style, False, s.faint))
    table, left_out = _table([s for s in drawn if not s.name.endswith("smoothed")], axis)
    shown = [s for s in drawn if not s.faint]
    return Chart(
        title=title,
        unit=unit,
        lines=tuple(lines),
        x_ticks=tuple(
            Tick((axis.at(x) - x0) / (x1 - x0 or 1) * 100, words)
            for x, words in axis.ticks(*((10**x0, 10**x1) if axis.log else (x0, x1)))
        ),
        y_ticks=tuple(Tick((1 - (y - y0) / (y1 - y0)) * 100, figure(y, 3)) for y in nice_ticks(y0, y1, 4)),
        summary=f"{title} over {'steps' if axis is STEPS else axis.name}{_span(xs, axis)}: "
        + "; ".join(
            f"{s.name} from {figure(s.points[0][1])} to {figure(s.points[-1][1])}{f' {unit}' if unit else ''}"
            for s in shown
        ),
        columns=(axis.name, *(s.name for s in drawn if not s.name.endswith("smoothed"))),
        table=table,
        left_out=left_out,
        axis="" if axis is STEPS else axis.name,
    )


def _span(places: Sequence[float], axis: Axis) -> str:
    """From where to where, in words; nothing where places have names."""
    if axis.labels:
        return ""
    low, high = (10 ** min(places), 10 ** max(places)) if axis.log else (min(places), max(places))
    return f" {axis.words(round(low, 12))} to {axis.words(round(high, 12))}"


def _table(series: Sequence[Series], axis: Axis) -> tuple[tuple[tuple[str, ...], ...], int]:
    if any(not s.joined for s in series):  # one place may hold several points
        points = sorted((x, n, y) for n, s in enumerate(series) for x, y in s.points)
        lone = tuple(
            (axis.words(x), *(figure(y) if n == place else "" for place in range(len(series))))
            for x, n, y in points[:MOST_TABLE_ROWS]
        )
        return lone, len(points) - len(lone)
    values: dict[float, dict[str, float]] = {}
    for s in series:
        for x, y in s.points:
            values.setdefault(x, {})[s.name] = y
    steps = sorted(values)
    # Steps that carry more than one series (validations) are the ones to keep.
    every = max(1, math.ceil(len(steps) / MOST_TABLE_ROWS))
    kept = [x for i, x in enumerate(steps) if i % every == 0 or i == len(steps) - 1]
    rows = tuple(
        (axis.words(x), *(figure(values[x][s.name]) if s.name in values[x] else "" for s in series))
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
