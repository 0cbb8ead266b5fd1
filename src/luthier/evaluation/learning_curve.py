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
MISFIT = 3.0
"""Standard errors beyond which a score speaks against the fitted law."""
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


def power_law(rows: Floats, error: Floats, weight: Floats) -> tuple[Floats, Floats, Floats]:
    """Weighted least squares of ``floor + scale * rows ** -exponent`` with floor, scale >= 0.

    rows, weight: [points]; error: [..., points]. For each exponent the rest is a straight line, solved in
    closed form; where its floor or its slope would be negative, the best line without it is taken.
    Returns floor, scale, exponent: [...].
    """
    shape = error.shape[:-1]
    best = np.full(shape, np.inf)
    found = [np.zeros(shape) for _ in range(3)]
    total, mean = weight.sum(), (weight * error).sum(-1) / weight.sum()
    for exponent in EXPONENTS:
        x = (rows / rows[0]) ** -exponent
        middle = (weight * x).sum() / total
        slope = (weight * (x - middle) * (error - mean[..., None])).sum(-1) / (
            weight * (x - middle) ** 2
        ).sum()
        alone = (weight * x * error).sum(-1) / (weight * x * x).sum()
        for floor, scale in (
            (mean - slope * middle, slope),
            (np.zeros(shape), alone),
            (mean, np.zeros(shape)),
        ):
            off = floor[..., None] + scale[..., None] * x - error
            squares = (weight * off**2).sum(-1)
            better = (floor >= 0) & (scale >= 0) & (squares < best - 1e-15)
            best = np.where(better, squares, best)
            for kept, value in zip(found, (floor, scale * rows[0] ** exponent, exponent), strict=True):
                kept[...] = np.where(better, value, kept)
    return found[0], found[1], found[2]


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
    floor, scale, exponent = (float(one) for one in power_law(rows, error, weight))
    draw = np.random.default_rng(seed)
    anew = np.maximum(error + draw.normal(0, spread, size=(DRAWS, len(points))), 0.0)
    floors, scales, exponents = power_law(rows, anew, weight)
    largest = float(rows[-1])
    at = np.geomspace(rows[0], largest * AHEAD, 25)
    band = floors[:, None] + scales[:, None] * at ** -exponents[:, None]
    low, high = np.quantile(band, [0.025, 0.975], axis=0)
    middle = floor + scale * at**-exponent
    if points[0].score.low >= 0 and points[-1].score.high <= 1:  # a share stays one
        low, middle, high = (np.clip(one, 0.0, 1.0) for one in (low, middle, high))
        floor, floors = min(floor, 1.0), np.clip(floors, 0.0, 1.0)
    scored = (turn - high, turn - middle, turn - low) if greater else (low, middle, high)
    ends = (turn - floor, turn - floors) if greater else (floor, floors)
    ceiling = _metric(*ends, greater=greater)
    more = 2 * largest
    gains = scales * (largest**-exponents - more**-exponents)
    doubled = _metric(scale * (largest**-exponent - more**-exponent), gains, greater=True)
    off = (floor + scale * rows**-exponent - error) / spread
    worst = int(np.abs(off).argmax())
    advice, words = _advice(points[-1], doubled, ceiling)
    if abs(off[worst]) > MISFIT and advice != "unclear":
        advice = "unclear"
        words = (
            f"The scores do not follow a power law (that of {points[worst].rows:,} rows lies "
            f"{abs(off[worst]):.0f} standard errors off it): nothing is foretold. Try sizes in between."
        )
    return CurveFit(
        floor=floor,
        scale=scale,
        exponent=exponent,
        points=tuple(
            (float(n), float(a), float(b), float(c)) for n, a, b, c in zip(at, *scored, strict=True)
        ),
        ceiling=ceiling,
        doubled=doubled,
        advice=advice,
        words=words,
    )


def _metric(value: float, drawn: Floats, *, greater: bool) -> Metric:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Metric(
        value=value,
        low=min(float(low), value),
        high=max(float(high), value),
        n=len(drawn),
        greater_is_better=greater,
    )


def _advice(last: Point, doubled: Metric, ceiling: Metric) -> tuple[Advice, str]:
    """What pays more: twice the rows, by what they are expected to bring, or something else.

    A gain is worth having from a twentieth of the error that is left, and from half a point.
    """
    share = 100.0 if last.score.low >= 0 and last.score.high <= 1 else 1.0
    unit = " points" if share > 1 else ""
    left = (1.0 - last.score.value) if last.score.greater_is_better else last.score.value
    worth = max(0.005, 0.05 * abs(left))
    said = f"{doubled.value * share:.1f}{unit} [{doubled.low * share:.1f}, {doubled.high * share:.1f}]"
    towards = f"{ceiling.value * share:.1f} [{ceiling.low * share:.1f}, {ceiling.high * share:.1f}]"
    head = (
        f"Twice the {last.rows:,} rows are expected to gain {said}; the curve runs towards "
        f"{towards}{' %' if share > 1 else ''}"
    )
    if share > 1 and last.score.greater_is_better and last.score.value == 0:
        return (
            "unclear",
            f"{last.rows:,} rows have not raised the score above 0 yet: train longer, or on more.",
        )
    if share > 1 and last.score.greater_is_better and left < 0.02:
        reached = f"{last.rows:,} rows reach {last.score.value * share:.1f} %"
        return "unclear", f"{reached}: there is next to nothing left to gain on these held-out rows."
    if doubled.low > 0 and doubled.value >= worth:
        return "more-data", f"{head}: more rows pay."
    if doubled.high < 2 * worth:
        return "bigger-model", f"{head}: more rows alone bring little; a larger model or other settings may."
    return "unclear", f"{head}: these scores are too uncertain to tell; judge on more held-out rows."
