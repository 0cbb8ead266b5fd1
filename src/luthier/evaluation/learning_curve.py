"""Score by number of training rows: a power law through a learning curve, and what it says of more rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from luthier.schema.results import Metric
from luthier.schema.sweep import CurveFit

Floats = NDArray[np.float64]
Advice = Literal["more-data", "bigger-model", "unclear"]
FEWEST_SIZES = 3
DRAWS = 400
AHEAD = 10.0
"""How many times the largest number of rows the fitted curve is drawn to."""
EXPONENTS = np.linspace(0.05, 2.0, 79)
"""Exponents that are tried: those measured for language and vision models lie between 0.07 and 0.95
(Hestness et al. 2017, arXiv 1712.00409; Kaplan et al. 2020, arXiv 2001.08361)."""


@dataclass(frozen=True, slots=True)
class Point:
    """A score at a number of training rows."""

    rows: int
    score: Metric


def power_law(rows: Floats, error: Floats, weight: Floats) -> tuple[float, float, float]:
    """Weighted least squares of ``floor + scale * rows ** -exponent`` with floor, scale >= 0.

    rows, error, weight: [points]. For each exponent the rest is a straight line, solved in closed form;
    returns floor, scale, exponent.
    """
    best, found = np.inf, (0.0, 0.0, float(EXPONENTS[0]))
    for exponent in EXPONENTS:
        x = (rows / rows[0]) ** -exponent
        for floor, scale in _lines(x, error, weight):
            squares = float((weight * (floor + scale * x - error) ** 2).sum())
            if floor >= 0 and scale >= 0 and squares < best - 1e-15:
                best, found = squares, (floor, scale * float(rows[0]) ** exponent, float(exponent))
    return found


def _lines(x: Floats, y: Floats, w: Floats) -> list[tuple[float, float]]:
    """The best line, and the best ones with no floor and with no slope: where the first is not allowed."""
    mx, my = (w * x).sum() / w.sum(), (w * y).sum() / w.sum()
    spread = float((w * (x - mx) ** 2).sum())
    slope = float((w * (x - mx) * (y - my)).sum()) / spread if spread > 0 else 0.0
    return [
        (float(my - slope * mx), slope),
        (0.0, float((w * x * y).sum() / (w * x * x).sum())),
        (float(my), 0.0),
    ]


def fit_curve(points: Sequence[Point], *, seed: int = 0) -> CurveFit | None:
    """The power law through a learning curve with bands, or None for fewer than three numbers of rows.

    Scores count as shares: what is fitted is the error, 1 - score (a score that is better when it is
    small is its own error). Bands come from fits to scores drawn anew within their intervals, as if each
    were independent: points judged on the same rows share part of their noise, so the bands are wide
    rather than narrow.
    """
    points = sorted(points, key=lambda point: point.rows)
    if len({point.rows for point in points}) < FEWEST_SIZES:
        return None
    greater = points[0].score.greater_is_better
    turn = 1.0 if greater else 0.0
    rows = np.array([point.rows for point in points], dtype=np.float64)
    value = np.array([point.score.value for point in points])
    error = turn - value if greater else value
    spread = np.array([max(p.score.high - p.score.low, 1e-3) / (2 * 1.96) for p in points])
    weight = spread**-2
    fitted = power_law(rows, error, weight)
    draw = np.random.default_rng(seed)
    drawn = [power_law(rows, np.maximum(error + draw.normal(0, spread), 0.0), weight) for _ in range(DRAWS)]
    largest = float(rows[-1])
    at = np.geomspace(rows[0], largest * AHEAD, 25)
    band = [_curve_at(at, *one) for one in drawn]
    low, high = np.quantile(band, [0.025, 0.975], axis=0)
    middle = _curve_at(at, *fitted)
    scored = (turn - high, turn - middle, turn - low) if greater else (low, middle, high)
    ceiling = _banded(fitted[0], [one[0] for one in drawn], turn=turn, greater=greater)
    gains = [_gain(largest, one) for one in drawn]
    doubled = _metric(_gain(largest, fitted), gains, greater=True)
    advice, words = _advice(points[-1], doubled, ceiling, greater=greater)
    return CurveFit(
        floor=fitted[0],
        scale=fitted[1],
        exponent=fitted[2],
        points=tuple(
            (float(n), float(a), float(b), float(c)) for n, a, b, c in zip(at, *scored, strict=True)
        ),
        ceiling=ceiling,
        doubled=doubled,
        advice=advice,
        words=words,
    )


def _curve_at(rows: Floats, floor: float, scale: float, exponent: float) -> Floats:
    found: Floats = floor + scale * rows**-exponent
    return found


def _gain(rows: float, fit: tuple[float, float, float]) -> float:
    """How much error twice the rows take away."""
    _, scale, exponent = fit
    return float(scale * (rows**-exponent - (2 * rows) ** -exponent))


def _banded(value: float, drawn: Sequence[float], *, turn: float, greater: bool) -> Metric:
    if greater:
        return _metric(turn - value, [turn - one for one in drawn], greater=True)
    return _metric(value, drawn, greater=False)


def _metric(value: float, drawn: Sequence[float], *, greater: bool) -> Metric:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Metric(
        value=value,
        low=min(float(low), value),
        high=max(float(high), value),
        n=len(drawn),
        greater_is_better=greater,
    )


def _advice(last: Point, doubled: Metric, ceiling: Metric, *, greater: bool) -> tuple[Advice, str]:
    """What pays more, by what twice the rows are expected to gain against what the curve still lacks."""
    noise = (last.score.high - last.score.low) / 2
    reached, end = last.score.value, ceiling.value
    share = 100.0 if last.score.low >= 0 and last.score.high <= 1 else 1.0
    unit = " points" if share > 1 else ""

    def said(one: Metric) -> str:
        return f"{one.value * share:+.1f}{unit} [{one.low * share:+.1f}, {one.high * share:+.1f}]"

    towards = f"{end * share:.1f} [{ceiling.low * share:.1f}, {ceiling.high * share:.1f}]"
    head = (
        f"Twice the {last.rows:,} rows are expected to bring {said(doubled)}; the curve runs towards "
        f"{towards}{' %' if share > 1 else ''}"
    )
    worth = max(0.25 * noise, 0.005 if share > 1 else 0.005 * abs(reached))
    if doubled.low > 0 and doubled.value >= worth:
        return "more-data", f"{head}: more rows pay."
    if doubled.high < max(noise, worth) and doubled.value < worth:
        left = (1.0 - end) if greater and share > 1 else None
        if left is not None and left < 0.02:
            return "unclear", f"{head}: there is next to nothing left to gain on these rows."
        return "bigger-model", f"{head}: more rows alone bring little; a larger model or other settings may."
    return "unclear", f"{head}: these scores are too uncertain to tell; judge on more held-out rows."
