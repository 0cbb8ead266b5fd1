"""The power law through a learning curve finds what made the scores, and says what pays."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.evaluation.learning_curve import Point, fit_curve, power_law
from luthier.schema.results import Metric

SIZES = (50, 100, 200, 400, 800)


def points(floor: float, scale: float, exponent: float, *, half: float = 0.01) -> list[Point]:
    found = []
    for rows in SIZES:
        value = 1 - (floor + scale * rows**-exponent)
        found.append(Point(rows, Metric(value=value, low=value - half, high=value + half, n=500)))
    return found


@pytest.mark.parametrize(
    ("floor", "scale", "exponent"), [(0.05, 2.0, 0.5), (0.0, 1.0, 0.25), (0.2, 6.0, 0.9)]
)
def test_the_law_is_found_again(floor: float, scale: float, exponent: float) -> None:
    rows = np.array(SIZES, dtype=float)
    found = power_law(rows, floor + scale * rows**-exponent, np.ones(len(rows)))
    assert [float(one) for one in found] == pytest.approx((floor, scale, exponent), rel=0.02, abs=2e-3)


def test_a_steep_curve_asks_for_more_rows() -> None:
    fit = fit_curve(points(0.02, 3.0, 0.4))
    assert fit is not None
    assert fit.advice == "more-data"
    truth = 3.0 * (800**-0.4 - 1600**-0.4)
    assert fit.doubled.low < truth < fit.doubled.high
    assert fit.doubled.value == pytest.approx(truth, rel=0.1)
    rows, low, middle, high = fit.points[-1]
    assert rows == pytest.approx(8000)
    assert low <= middle <= high
    assert "more rows pay" in fit.words


def test_a_flat_curve_asks_for_something_else() -> None:
    fit = fit_curve(points(0.3, 1.0, 1.2, half=0.005))
    assert fit is not None
    assert fit.advice == "bigger-model"
    assert fit.ceiling.value == pytest.approx(0.7, abs=0.01)
    assert "larger model" in fit.words


def test_a_full_score_and_noise_are_told_apart_from_both() -> None:
    full = [Point(n, Metric(value=0.999, low=0.99, high=1.0, n=400)) for n in SIZES]
    done = fit_curve(full)
    assert done is not None
    assert done.advice == "unclear"
    assert "next to nothing left" in done.words
    noisy = [
        Point(n, Metric(value=v, low=v - 0.3, high=v + 0.3, n=10))
        for n, v in zip(SIZES, (0.3, 0.4, 0.35, 0.5, 0.45), strict=True)
    ]
    unsure = fit_curve(noisy)
    assert unsure is not None
    assert unsure.advice == "unclear"


def test_a_score_that_never_rose_on_few_rows_says_nothing() -> None:
    fit = fit_curve([Point(n, Metric(value=0.0, low=0.0, high=0.24, n=12)) for n in SIZES])
    assert fit is not None
    assert fit.advice == "unclear"
    assert min(point[1] for point in fit.points) >= 0
    assert fit.ceiling.low >= 0


def test_a_jump_is_no_power_law() -> None:
    scores = (0.13, 0.13, 0.10, 0.10, 0.8)
    jump = [
        Point(n, Metric(value=v, low=v - 0.07, high=v + 0.07, n=60))
        for n, v in zip(SIZES, scores, strict=True)
    ]
    fit = fit_curve(jump)
    assert fit is not None
    assert fit.advice == "unclear"
    assert "do not follow a power law" in fit.words


def test_two_sizes_are_no_curve_and_smaller_may_be_better() -> None:
    assert fit_curve(points(0.1, 1.0, 0.5)[:2]) is None
    losses = [
        Point(n, Metric(value=2 + 8 * n**-0.5, low=1.99 + 8 * n**-0.5, high=2.01 + 8 * n**-0.5, n=300,
                        greater_is_better=False))
        for n in SIZES
    ]  # fmt: skip
    fit = fit_curve(losses)
    assert fit is not None
    assert fit.ceiling.value == pytest.approx(2.0, abs=0.05)
    assert fit.points[0][2] > fit.points[-1][2]
    assert fit.doubled.value > 0
