"""Intervals, tests and verdicts for scores of the same rows before and after tuning.

Every interval is two-sided 95 % unless ``level`` says otherwise. The choice of methods rests on the
simulation in ``benchmarks/proof/coverage.py``: for yes/no scores Tango's paired score interval, for
graded scores a t interval corrected for skewness and steadied by two balanced half-weight rows. On
sparse differences (most rows unchanged) the bootstrap intervals that are usual here (BCa, studentised)
cover far less than they say, so they are not used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from luthier.schema.results import Difference, Metric, Verdict

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

LEVEL = 0.95
FEWEST_DISCORDANT = 10
"""With fewer changed rows than this the verdict is always inconclusive."""
POWER = 0.8
EXACT_FLIPS = 14
"""Up to this many changed units all sign flips are enumerated."""
NORMAL_FLIPS = 200
"""Above this many changed units the sign-flip distribution is taken as normal."""
FLIPS = 9_999
FEW_UNITS = 20
"""Below so many independent units Student's t interval must lie within the one that is given: the correction
for skewness needs more of them."""
ONE_SIDED_ROWS = 100
"""Below so many units that all moved the same way, those that move the other way may not be among them."""
RARE = 3
"""With so few right (or wrong) rows Wilson's limit beside them is too near, and Poisson's may be taken."""
TOLERANCE = 1e-12
"""Scores nearer than this are equal: what summation order can change."""


def normal_quantile(p: float) -> float:
    """The p quantile of the standard normal distribution."""
    return NormalDist().inv_cdf(p)


# --- one proportion, one mean -------------------------------------------------------------------


def wilson_interval(successes: ArrayLike, n: ArrayLike, *, level: float = LEVEL) -> tuple[Floats, Floats]:
    """Wilson's score interval for a proportion (Wilson 1927, JASA 22:209-212).

    Broadcasts; n may be fractional.
    """
    k, total = np.asarray(successes, dtype=np.float64), np.asarray(n, dtype=np.float64)
    z2 = normal_quantile(0.5 + level / 2) ** 2
    p = k / total
    centre = (p + z2 / (2 * total)) / (1 + z2 / total)
    spread = np.sqrt(np.maximum(p * (1 - p) / total + z2 / (4 * total**2), 0))
    half = spread * math.sqrt(z2) / (1 + z2 / total)
    # At p = 0 and p = 1 the limit is exactly 0 or 1; rounding must not leave it a hair inside.
    low = np.where(p <= 0, 0.0, np.maximum(centre - half, 0.0))
    high = np.where(p >= 1, 1.0, np.minimum(centre + half, 1.0))
    return low, high


def score_interval(
    scores: Sequence[float] | Floats, groups: Sequence[str | None] | None = None, *, level: float = LEVEL
) -> tuple[float, float]:
    """Interval for the mean score of one model.

    Scores within 0..1 (yes/no or graded) get Wilson's interval at the effective number of rows
    p (1 - p) / se^2 (Korn & Graubard 1998, Survey Methodology 24:193-201), which is the number of rows
    itself for independent yes/no scores; others get the mean interval of the paired comparison.
    """
    values = np.asarray(scores, dtype=np.float64)
    units, _ = unit_values(values, groups)
    mean = float(values.mean())
    if values.min() < 0 or values.max() > 1:
        low, high = mean_interval(units, level=level)
        return float(low), float(high)
    n = len(values)
    if len(units) == n and is_binary(values):
        low, high = wilson_interval(values.sum(), float(n), level=level)
        return _rarely(float(low), float(high), int(values.sum()), n, level=level)
    count = len(units)
    variance = float(units.var(ddof=1)) / count if count > 1 else 0.0
    # A sample without spread says nothing about its spread: then each unit counts once.
    effective = mean * (1 - mean) / variance if variance > TOLERANCE else float(count)
    # Few units know their own spread badly; the t quantile says by how much.
    effective *= (normal_quantile(0.5 + level / 2) / t_quantile(0.5 + level / 2, max(count - 1, 1))) ** 2
    effective = max(effective, 1e-9)
    low, high = wilson_interval(mean * effective, effective, level=level)
    return float(low), float(high)


def _rarely(low: float, high: float, right: int, n: int, *, level: float) -> tuple[float, float]:
    """Wilson's interval with Poisson's one-sided limit where up to ``RARE`` rows are right, or wrong.

    There Wilson's own covers too seldom (Brown, Cai & DasGupta 2001, Statistical Science 16:101-133, their
    modified Wilson interval).
    """
    from scipy import stats

    def limit(rare: int) -> float:
        return float(stats.chi2.ppf(1 - level, 2 * rare)) / (2 * n)

    if 1 <= right <= RARE:
        low = min(low, limit(right))
    if 1 <= n - right <= RARE:
        high = max(high, 1 - limit(n - right))
    return low, high


def metric_of(
    scores: Sequence[float] | Floats,
    groups: Sequence[str | None] | None = None,
    *,
    greater_is_better: bool = True,
) -> Metric:
    """The mean score with its interval."""
    low, high = score_interval(scores, groups)
    value = float(np.mean(np.asarray(scores, dtype=np.float64)))
    return Metric(
        value=value,
        low=min(low, value),
        high=max(high, value),
        n=len(scores),
        greater_is_better=greater_is_better,
    )


def is_binary(values: Floats) -> bool:
    """Whether all values are exactly 0 or 1."""
    return bool(np.all((values == 0) | (values == 1)))


def t_quantile(p: float, df: float) -> float:
    """The p quantile of Student's t distribution."""
    from scipy import stats

    return float(stats.t.ppf(p, df))


# --- paired intervals ---------------------------------------------------------------------------


def tango_interval(
    improved: ArrayLike, regressed: ArrayLike, n: ArrayLike, *, level: float = LEVEL
) -> tuple[Floats, Floats]:
    """Score interval for a difference of paired proportions (Tango 1998, Statistics in Medicine 17:891-908).

    improved, regressed: rows that went 0 -> 1 and 1 -> 0; n: all rows. Broadcasts. The limits are the
    differences at which the score statistic is +z and -z; it falls steadily in between, so they are
    found by bisection.
    """
    b, c, total = np.broadcast_arrays(
        np.asarray(improved, dtype=np.float64),
        np.asarray(regressed, dtype=np.float64),
        np.asarray(n, dtype=np.float64),
    )
    z = normal_quantile(0.5 + level / 2)

    def statistic(delta: Floats) -> Floats:
        # Maximum-likelihood share of regressed rows when the true difference is delta.
        linear = -b - c + (2 * total - b + c) * delta
        root = np.sqrt(np.maximum(linear**2 + 8 * total * c * delta * (1 - delta), 0))
        share = (root - linear) / (4 * total)
        variance = total * np.maximum(2 * share + delta * (1 - delta), 0)
        gap = b - c - total * delta
        # No variance leaves the statistic infinite on either side of its zero.
        infinite = np.where(gap == 0, 0.0, np.copysign(np.inf, gap))
        return np.asarray(np.divide(gap, np.sqrt(variance), out=infinite, where=variance > 0))

    def solve(target: float) -> Floats:
        low, high = np.full(b.shape, -1.0), np.full(b.shape, 1.0)
        for _ in range(60):
            middle = (low + high) / 2
            above = statistic(middle) > target
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        return np.asarray((low + high) / 2)

    return solve(z), solve(-z)


def mean_interval(
    units: ArrayLike, *, level: float = LEVEL, reach: float | None = None
) -> tuple[Floats, Floats]:
    """Interval for the mean of differences along the last axis: [..., units] -> [...], [...].

    A t interval through Hall's cubic transformation, which takes out skewness (Hall 1992, JRSS B
    54:221-228), after adding two rows of half weight, as far above and below the mean as the row
    farthest from it. They do for graded scores what Bonett & Price's (2012, JEBS 37:479-488) added
    counts do for yes/no scores: with few changed rows the observed spread is too small. Below
    ``FEW_UNITS`` units it is widened to hold Student's t interval too.

    reach: how far a single row can move at all. Where fewer than ``ONE_SIDED_ROWS`` units all moved the same
    way, the limit on the other side allows for the largest share of units that so many can have missed (with
    a probability of 2.5 %: 1 - 0.025 ** (1 / n)) to move the other way half as far as that.
    """
    d = np.asarray(units, dtype=np.float64)
    plain = d
    centre = d.mean(axis=-1, keepdims=True)
    farthest = np.abs(d - centre).max(axis=-1, keepdims=True)
    # No spread at all: one row off by a whole point is what might have been missed.
    steady = np.where(farthest > TOLERANCE, farthest, 1.0) * math.sqrt(0.5)
    d = np.concatenate([d, centre + steady, centre - steady], axis=-1)
    n = d.shape[-1]
    mean = d.mean(axis=-1)
    centred = d - mean[..., None]
    variance = (centred**2).mean(axis=-1)
    skewness = (centred**3).mean(axis=-1) / np.maximum(variance, 1e-300) ** 1.5
    a = skewness / (3 * math.sqrt(n))
    a = np.where(np.abs(a) < 1e-9, 1e-9, a)
    error = np.sqrt(variance / (n - 1))
    quantile = t_quantile(0.5 + level / 2, n - 1)

    def limit(x: float) -> Floats:
        return np.asarray(mean - error * (np.cbrt(1 + 3 * a * (x - a / 2)) - 1) / a)

    low, high = limit(quantile), limit(-quantile)
    count = plain.shape[-1]
    if 1 < count < FEW_UNITS:
        centred_on = plain.mean(axis=-1)
        half = t_quantile(0.5 + level / 2, count - 1) * plain.std(axis=-1, ddof=1) / math.sqrt(count)
        low, high = np.minimum(low, centred_on - half), np.maximum(high, centred_on + half)
    if reach is not None and 1 < count < ONE_SIDED_ROWS:
        missed = reach / 2 * (1 - ((1 - level) / 2) ** (1 / count))
        middle = plain.mean(axis=-1)
        low = np.where((plain > TOLERANCE).all(axis=-1), np.minimum(low, middle - missed), low)
        high = np.where((plain < -TOLERANCE).all(axis=-1), np.maximum(high, middle + missed), high)
    return low, high


def unit_values(values: Floats, groups: Sequence[str | None] | None) -> tuple[Floats, NDArray[np.intp]]:
    """Values by independent unit: rows, or groups where rows share one; the mean stays the same.

    Returns one value a unit (a group's share of the mean, linearised as for a ratio estimate) and the
    unit of each row. A row without a group is a unit of its own.
    """
    n = len(values)
    if groups is None or len({g for g in groups if g is not None}) == 0:
        return values, np.arange(n)
    names = [f"row {i}" if g is None else f"group {g}" for i, g in enumerate(groups)]
    _, unit = np.unique(np.asarray(names), return_inverse=True)
    count = int(unit.max()) + 1
    if count == n:
        return values, unit
    mean = values.mean()
    return mean + np.bincount(unit, weights=values - mean, minlength=count) * (count / n), unit


# --- tests --------------------------------------------------------------------------------------


def sign_flip_p(sums: Floats, *, seed: int = 0) -> float:
    """Two-sided paired permutation test: how often random signs give a sum as far from zero.

    sums: total difference of each independent unit. Units without a difference do not matter. All
    flips are enumerated for few units (for yes/no scores that is the exact McNemar test); 9,999 drawn
    by seed for more, the observed one counted; the normal limit is taken beyond 200 units.
    """
    changed = sums[np.abs(sums) > TOLERANCE]
    m = len(changed)
    if m == 0:
        return 1.0
    observed = abs(float(changed.sum())) - 1e-9 * float(np.abs(changed).max())
    if np.allclose(np.abs(changed), abs(changed[0])):
        from scipy import stats

        return float(stats.binomtest(int((changed > 0).sum()), m).pvalue)
    if m > NORMAL_FLIPS:
        return 2 * NormalDist().cdf(-max(observed, 0.0) / math.sqrt(float((changed**2).sum())))
    if m <= EXACT_FLIPS:
        bits = (np.arange(2**m)[:, None] >> np.arange(m)) & 1
        return float(np.mean(np.abs((1 - 2 * bits) @ changed) >= observed))
    signs = 1.0 - 2.0 * np.random.default_rng(seed).integers(0, 2, size=(FLIPS, m), dtype=np.int8)
    extreme = int((np.abs(signs @ changed) >= observed).sum())
    return (extreme + 1) / (FLIPS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction over several metrics (Holm 1979, Scand. J. Statist. 6:65-70)."""
    count = len(p_values)
    order = sorted(range(count), key=lambda i: p_values[i])
    adjusted, running = [0.0] * count, 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (count - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


# --- power --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spread:
    """How much paired differences vary, as the power formulas need it."""

    second_moment: float
    """n times the squared standard error of the mean difference if the true one were zero."""
    size: float
    """Typical size of one changed row (1 for yes/no scores)."""
    changed_share: float


def spread_of(differences: Floats, groups: Sequence[str | None] | None = None) -> Spread:
    """The spread of observed differences; one more changed row is assumed, so that it is never zero."""
    n = len(differences)
    _, unit = unit_values(differences, groups)
    sums = np.bincount(unit, weights=differences)
    total = float(np.abs(differences).sum())
    size = float((differences**2).sum()) / total if total > TOLERANCE else 1.0
    changed = int((np.abs(differences) > TOLERANCE).sum())
    return Spread(
        second_moment=(float((sums**2).sum()) + size**2) / (n + 1),
        size=size,
        changed_share=(changed + 1) / (n + 1),
    )


def rows_needed(delta: float, spread: Spread, *, level: float = LEVEL, power: float = POWER) -> int | None:
    """Rows with which a true difference of delta is found with the given power; None for delta = 0.

    Connor's formula for paired proportions (Connor 1987, Biometrics 43:207-211) with the second moment
    of the differences in place of the share of discordant rows, and never fewer than the rows that
    hold ten changed ones.
    """
    size = abs(delta)
    if size < TOLERANCE:
        return None
    moment = max(spread.second_moment, spread.size * size, size**2)
    alpha, beta = normal_quantile(0.5 + level / 2), normal_quantile(power)
    rows = ((alpha * math.sqrt(moment) + beta * math.sqrt(max(moment - size**2, 0.0))) / size) ** 2
    share = max(spread.changed_share, size / max(spread.size, size))
    return math.ceil(max(rows, FEWEST_DISCORDANT / share))


def detectable_difference(
    n: int, spread: Spread, *, level: float = LEVEL, power: float = POWER
) -> float | None:
    """The smallest true difference that n rows show with the given power; None where none can be."""
    low, high = 0.0, 1.0

    def enough(delta: float) -> bool:
        needed = rows_needed(delta, spread, level=level, power=power)
        return needed is not None and needed <= n

    while not enough(high):
        high *= 2
        if high > 1e6:
            return None
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


# --- the comparison of one metric ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PairedScores:
    """Scores of the same rows before and after, for one metric."""

    metric: str
    baseline: Floats
    tuned: Floats
    groups: tuple[str | None, ...] | None = None
    greater_is_better: bool = True


def paired_interval(pair: PairedScores, *, level: float = LEVEL) -> tuple[float, float]:
    """Interval for the mean of tuned minus baseline, within what the scores' range allows."""
    differences = pair.tuned - pair.baseline
    units, _ = unit_values(differences, pair.groups)
    both = np.concatenate([pair.baseline, pair.tuned])
    if len(units) == len(differences) and is_binary(both):
        b, c = int((differences > 0).sum()), int((differences < 0).sum())
        low, high = tango_interval(b, c, len(differences), level=level)
        return float(low), float(high)
    bound = 1.0 if both.min() >= 0 and both.max() <= 1 else math.inf
    low, high = mean_interval(units, level=level, reach=None if math.isinf(bound) else bound)
    return max(float(low), -bound), min(float(high), bound)


def verdict_of(delta: Metric, p_value: float, discordant: int, *, alpha: float = 1 - LEVEL) -> Verdict:
    """Better or worse only if the interval leaves out zero, the corrected p agrees and 10 rows changed."""
    if discordant < FEWEST_DISCORDANT or p_value > alpha or delta.low <= 0 <= delta.high:
        return "inconclusive"
    return "better" if (delta.value > 0) == delta.greater_is_better else "worse"


def compare_scores(pairs: Sequence[PairedScores], *, seed: int = 0) -> list[Difference]:
    """Tuned minus baseline for each metric, p values corrected over all of them (Holm)."""
    raw = [row_p(pair, seed=seed) for pair in pairs]
    return [row_difference(pair, p) for pair, p in zip(pairs, holm(raw), strict=True)]


def row_p(pair: PairedScores, *, seed: int = 0) -> float:
    """The p value of one metric alone (see `sign_flip_p`)."""
    differences = pair.tuned - pair.baseline
    _, unit = unit_values(differences, pair.groups)
    return sign_flip_p(np.bincount(unit, weights=differences).astype(np.float64), seed=seed)


def row_difference(pair: PairedScores, p_value: float) -> Difference:
    """Tuned minus baseline; p_value is already corrected over all metrics."""
    differences = pair.tuned - pair.baseline
    up, down = int((differences > TOLERANCE).sum()), int((differences < -TOLERANCE).sum())
    improved, regressed = (up, down) if pair.greater_is_better else (down, up)
    low, high = paired_interval(pair)
    value = float(differences.mean())
    spread = spread_of(differences, pair.groups)
    delta = Metric(
        value=value,
        low=min(low, value),
        high=max(high, value),
        n=len(differences),
        greater_is_better=pair.greater_is_better,
    )
    return Difference(
        metric=pair.metric,
        baseline=metric_of(pair.baseline, pair.groups, greater_is_better=pair.greater_is_better),
        tuned=metric_of(pair.tuned, pair.groups, greater_is_better=pair.greater_is_better),
        delta=delta,
        p_value=p_value,
        verdict=verdict_of(delta, p_value, improved + regressed),
        improved=improved,
        regressed=regressed,
        detectable=detectable_difference(len(differences), spread),
        rows_needed=rows_needed(value, spread),
    )
