"""Scores of a whole set that are no means over rows: macro-F1, calibration error, recall of a part.

Each is a function of sums: every row adds a few numbers, and the score is computed from their totals.
So leaving a row out, or swapping it between two models, is an addition; intervals come from the
jackknife's pseudo-values (Tukey 1958; Efron & Stein 1981) through the same corrected t interval as means,
and p values from a paired permutation test that swaps rows between the models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from luthier.evaluation.statistics import TOLERANCE, mean_interval, verdict_of
from luthier.schema.results import Difference, Metric, ScoredRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

SWAPS = 1_999
"""Permutations of a paired test, the observed order not counted."""
AT_ONCE = 1 << 24
"""Numbers that one block of leave-one-out totals may hold."""
BINS = 15
"""Bins of the expected calibration error (Guo et al. 2017, arXiv 1706.04599, section 2)."""


@dataclass(frozen=True, slots=True)
class SetMetric:
    """A score computed from totals.

    addends: rows and all label names to [rows, addends]; value: totals [..., addends] to scores [...].
    """

    name: str
    label: str
    definition: str
    addends: Callable[[Sequence[ScoredRow], tuple[str, ...]], Floats]
    value: Callable[[Floats], Floats]
    greater_is_better: bool = True
    lowest: float = 0.0
    highest: float = 1.0


def _hits(rows: Sequence[ScoredRow], labels: tuple[str, ...]) -> Floats:
    """For each label: right, given, expected: [rows, 3 x labels]."""
    place = {label: index for index, label in enumerate(labels)}
    found = np.zeros((len(rows), 3, len(labels)))
    for index, row in enumerate(rows):
        gold, given = set(row.gold), set(row.given)
        for label in gold & given:
            found[index, 0, place[label]] = 1
        for label in given:
            found[index, 1, place[label]] = 1
        for label in gold:
            found[index, 2, place[label]] = 1
    return found.reshape(len(rows), -1)


def _f1(right: Floats, given: Floats, expected: Floats) -> Floats:
    whole = given + expected
    return np.asarray(np.divide(2 * right, whole, out=np.zeros_like(whole), where=whole > 0))


def _macro_f1(totals: Floats) -> Floats:
    """Mean F1 over the labels that are expected or given at all."""
    right, given, expected = np.split(totals, 3, axis=-1)
    present = (given + expected) > TOLERANCE
    scores = np.where(present, _f1(right, given, expected), 0.0)
    return np.asarray(scores.sum(axis=-1) / np.maximum(present.sum(axis=-1), 1))


def _micro_f1(totals: Floats) -> Floats:
    right, given, expected = (part.sum(axis=-1) for part in np.split(totals, 3, axis=-1))
    return _f1(right, given, expected)


def _bins(rows: Sequence[ScoredRow], labels: tuple[str, ...]) -> Floats:
    """Confidence and correctness by bin of confidence, then 1: [rows, 2 x bins + 1]."""
    del labels
    confidence = np.array([row.figures["confidence"] for row in rows])
    right = np.array([row.figures["hit"] for row in rows])
    # The bins are (0, 1/15], (1/15, 2/15], ...
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    found = np.zeros((len(rows), 2 * BINS + 1))
    index = np.arange(len(rows))
    found[index, place] = confidence
    found[index, BINS + place] = right
    found[:, -1] = 1
    # No label is right for a row outside all of them, however sure: refusal is scored on its own.
    inside = np.array([1 - row.figures.get("out_of_scope", 0.0) for row in rows])
    return np.asarray(found * inside[:, None])


def _ece(totals: Floats) -> Floats:
    gaps = np.abs(totals[..., :BINS] - totals[..., BINS : 2 * BINS]).sum(axis=-1)
    return np.asarray(gaps / np.maximum(totals[..., -1], TOLERANCE))


def _outside(rows: Sequence[ScoredRow], labels: tuple[str, ...]) -> Floats:
    """Out of scope and told so; out of scope: [rows, 2]."""
    del labels
    expected = np.array([row.figures.get("out_of_scope", 0.0) for row in rows])
    told = np.array([row.figures.get("refused", 0.0) for row in rows])
    return np.stack([expected * told, expected], axis=1)


def _inside(rows: Sequence[ScoredRow], labels: tuple[str, ...]) -> Floats:
    """In scope and right; in scope: [rows, 2]."""
    del labels
    inside = 1 - np.array([row.figures.get("out_of_scope", 0.0) for row in rows])
    right = np.array([row.figures.get("right", 0.0) for row in rows])
    return np.stack([inside * right, inside], axis=1)


def _ratio(totals: Floats) -> Floats:
    return np.asarray(
        np.divide(
            totals[..., 0],
            totals[..., 1],
            out=np.zeros_like(totals[..., 0]),
            where=totals[..., 1] > TOLERANCE,
        )
    )


def _nats(rows: Sequence[ScoredRow], labels: tuple[str, ...]) -> Floats:
    del labels
    return np.array([[row.figures["nats"], row.figures["tokens"]] for row in rows])


def _byte_nats(rows: Sequence[ScoredRow], labels: tuple[str, ...]) -> Floats:
    del labels
    return np.array([[row.figures["nats"] / np.log(2), row.figures["bytes"]] for row in rows])


def _margin(rows: Sequence[ScoredRow], labels: tuple[str, ...]) -> Floats:
    del labels
    return np.array([[row.figures["margin"], 1.0] for row in rows])


def _chosen_nats(rows: Sequence[ScoredRow], labels: tuple[str, ...]) -> Floats:
    del labels
    return np.array([[-row.figures["chosen"], row.figures["chosen_tokens"]] for row in rows])


SET_METRICS: dict[str, SetMetric] = {
    metric.name: metric
    for metric in (
        SetMetric(
            "macro_f1",
            "Macro-F1",
            "F1 of each label that is expected or given, the mean over labels: rare labels count as much "
            "as common ones.",
            _hits,
            _macro_f1,
        ),
        SetMetric(
            "micro_f1", "Micro-F1", "F1 over all pairs of row and label: common labels count most.",
            _hits, _micro_f1,
        ),
        SetMetric(
            "calibration_error",
            "Calibration error",
            "Expected calibration error: distance between confidence and share right, over 15 bins of "
            "confidence, weighted by rows (Guo et al. 2017); rows outside all labels are left out.",
            _bins,
            _ece,
            greater_is_better=False,
        ),
        SetMetric(
            "out_of_scope_recall",
            "Out-of-scope recall",
            "Share of the rows outside all labels that were told so.",
            _outside,
            _ratio,
        ),
        SetMetric(
            "in_scope_accuracy",
            "In-scope accuracy",
            "Share of the rows inside the labels that were given theirs (and not told to be outside).",
            _inside,
            _ratio,
        ),
        SetMetric(
            "loss",
            "Loss",
            "Cross-entropy of the text in nats a token, the mean over all tokens.",
            _nats,
            _ratio,
            greater_is_better=False,
            highest=float("inf"),
        ),
        SetMetric(
            "bits_per_byte",
            "Bits per byte",
            "Cross-entropy of the text in bits, over its bytes in UTF-8: the same unit for every tokenizer.",
            _byte_nats,
            _ratio,
            greater_is_better=False,
            highest=float("inf"),
        ),
        SetMetric(
            "preference_margin",
            "Preference margin",
            "Reward of the chosen answer minus that of the rejected one, the mean over pairs.",
            _margin,
            _ratio,
            lowest=float("-inf"),
            highest=float("inf"),
        ),
        SetMetric(
            "chosen_loss",
            "Loss of the chosen",
            "Cross-entropy of the chosen answers in nats a token: preference tuning may part the answers by "
            "making both less likely, which shows here.",
            _chosen_nats,
            _ratio,
            greater_is_better=False,
            highest=float("inf"),
        ),
    )
}  # fmt: skip


def labels_in(*results: Sequence[ScoredRow]) -> tuple[str, ...]:
    """Every label that is expected or given in any of the results, in order."""
    return tuple(
        sorted(
            {label for rows in results for row in rows for part in (row.gold, row.given) for label in part}
        )
    )


def _by_unit(addends: Floats, groups: Sequence[str | None] | None) -> Floats:
    """Rows that share a group added up: [units, addends]."""
    if groups is None or not any(group is not None for group in groups):
        return addends
    names = [f"row {i}" if group is None else f"group {group}" for i, group in enumerate(groups)]
    _, unit = np.unique(np.asarray(names), return_inverse=True)
    found = np.zeros((int(unit.max()) + 1, addends.shape[1]))
    np.add.at(found, unit, addends)
    return found


def _pseudo_values(metric: SetMetric, units: Floats) -> tuple[float, Floats]:
    """The score, and the jackknife's pseudo-value of each unit, shifted to have the score as their mean."""
    total = units.sum(axis=0)
    value = float(metric.value(total))
    count = len(units)
    if count < 2:
        return value, np.full(1, value)
    block = max(1, AT_ONCE // max(1, units.shape[1]))
    left_out = np.concatenate(
        [metric.value(total - units[start : start + block]) for start in range(0, count, block)]
    )
    pseudo = count * value - (count - 1) * left_out
    return value, pseudo - pseudo.mean() + value


def _clipped(metric: SetMetric, value: float, low: float, high: float, n: int) -> Metric:
    return Metric(
        value=value,
        low=min(max(low, metric.lowest), value),
        high=max(min(high, metric.highest), value),
        n=n,
        greater_is_better=metric.greater_is_better,
    )


def set_metric_of(
    metric: SetMetric, rows: Sequence[ScoredRow], labels: tuple[str, ...] | None = None
) -> Metric:
    """The score of one model with its interval."""
    units = _by_unit(metric.addends(rows, labels or labels_in(rows)), [row.group for row in rows])
    value, pseudo = _pseudo_values(metric, units)
    low, high = mean_interval(pseudo)
    return _clipped(metric, value, float(low), float(high), len(rows))


@dataclass(frozen=True, slots=True)
class PairedSets:
    """One set metric over the same rows before and after."""

    metric: SetMetric
    baseline: Sequence[ScoredRow]
    tuned: Sequence[ScoredRow]

    def units(self) -> tuple[Floats, Floats]:
        """Addends of both by unit: [units, addends]."""
        labels = labels_in(self.baseline, self.tuned)
        groups = [row.group for row in self.tuned]
        before = _by_unit(self.metric.addends(self.baseline, labels), groups)
        return before, _by_unit(self.metric.addends(self.tuned, labels), groups)


def swap_p(pair: PairedSets, *, seed: int = 0) -> float:
    """Two-sided paired permutation test: how often swapping rows at random parts the models as far."""
    before, after = pair.units()
    change = after - before
    moved = np.abs(change).max(axis=1) > TOLERANCE
    if not moved.any():
        return 1.0
    change = change[moved]
    first, second = before.sum(axis=0), after.sum(axis=0)
    observed = abs(float(pair.metric.value(second)) - float(pair.metric.value(first)))
    draw = np.random.default_rng(seed)
    extreme = 0
    block = max(1, AT_ONCE // max(change.shape))
    for start in range(0, SWAPS, block):
        size = min(block, SWAPS - start)
        kept = draw.integers(0, 2, size=(size, len(change))).astype(np.float64)
        shift = kept @ change
        gap = pair.metric.value(first + shift) - pair.metric.value(second - shift)
        extreme += int((np.abs(gap) >= observed - TOLERANCE).sum())
    return (extreme + 1) / (SWAPS + 1)


def set_difference(pair: PairedSets, p_value: float) -> Difference:
    """Tuned minus baseline with its interval; p_value is already corrected over all metrics."""
    metric = pair.metric
    before, after = pair.units()
    first, pseudo_before = _pseudo_values(metric, before)
    second, pseudo_after = _pseudo_values(metric, after)
    value = second - first
    low, high = mean_interval(pseudo_after - pseudo_before)
    bound = metric.highest - metric.lowest
    delta = Metric(
        value=value,
        low=min(max(float(low), -bound), value),
        high=max(min(float(high), bound), value),
        n=len(pair.tuned),
        greater_is_better=metric.greater_is_better,
    )
    change = after - before
    total = before.sum(axis=0)
    moves = metric.value(total + change) - first
    up, down = int((moves > TOLERANCE).sum()), int((moves < -TOLERANCE).sum())
    improved, regressed = (up, down) if metric.greater_is_better else (down, up)
    changed = int((np.abs(change).max(axis=1) > TOLERANCE).sum())
    labels = labels_in(pair.baseline, pair.tuned)
    return Difference(
        metric=metric.name,
        baseline=set_metric_of(metric, pair.baseline, labels),
        tuned=set_metric_of(metric, pair.tuned, labels),
        delta=delta,
        p_value=p_value,
        verdict=verdict_of(delta, p_value, changed),
        improved=improved,
        regressed=regressed,
    )
