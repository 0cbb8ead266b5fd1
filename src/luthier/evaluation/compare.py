"""Baseline against tuned on the same rows: verdict, changed rows, slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from luthier.errors import UsageError
from luthier.evaluation.metrics import METRICS
from luthier.evaluation.statistics import (
    TOLERANCE,
    PairedScores,
    compare_scores,
    holm,
    row_difference,
    row_p,
)
from luthier.evaluation.totals import SET_METRICS, PairedSets, set_difference, swap_p
from luthier.schema.results import Comparison, Difference, EvalResult, ScoredRow


def compare(baseline: EvalResult, tuned: EvalResult, *, seed: int = 0) -> Comparison:
    """Tuned minus baseline for each metric, with intervals and a verdict.

    Raises UsageError unless both were judged on the same rows in the same way.
    """
    pairs = paired_rows(baseline, tuned)
    if baseline.primary != tuned.primary:
        raise UsageError(
            f"the primary metrics differ: {baseline.primary} and {tuned.primary}",
            hint="evaluate both with the same metrics",
        )
    names = [name for name in baseline.metrics if name in tuned.metrics]
    groups = tuple(before.group for before, _ in pairs)
    differences = _differences(pairs, names, groups, tuned, seed)
    return Comparison(
        split=tuned.split,
        primary=tuned.primary,
        differences=tuple(differences),
        verdict=next(d.verdict for d in differences if d.metric == tuned.primary),
    )


def _differences(
    pairs: Sequence[tuple[ScoredRow, ScoredRow]],
    names: Sequence[str],
    groups: tuple[str | None, ...],
    tuned: EvalResult,
    seed: int,
) -> list[Difference]:
    """One difference a metric, means over rows and scores of whole sets; p values corrected over all."""
    alone = [name for name in names if name not in SET_METRICS]
    means = {
        name: PairedScores(
            metric=name,
            baseline=np.array([before.scores[name] for before, _ in pairs]),
            tuned=np.array([after.scores[name] for _, after in pairs]),
            groups=groups,
            greater_is_better=tuned.metrics[name].greater_is_better,
        )
        for name in alone
    }
    before, after = [one for one, _ in pairs], [one for _, one in pairs]
    sets = {name: PairedSets(SET_METRICS[name], before, after) for name in names if name in SET_METRICS}
    raw = [row_p(means[n], seed=seed) if n in means else swap_p(sets[n], seed=seed) for n in names]
    return [
        row_difference(means[name], p) if name in means else set_difference(sets[name], p)
        for name, p in zip(names, holm(raw), strict=True)
    ]


def paired_rows(baseline: EvalResult, tuned: EvalResult) -> list[tuple[ScoredRow, ScoredRow]]:
    """The rows of both side by side, in the order of the tuned. Raises UsageError if they do not pair."""
    if baseline.split != tuned.split:
        raise UsageError(
            f"the results are of different splits: {baseline.split} and {tuned.split}",
            hint="evaluate both models on one split",
        )
    before = {row.id: row for row in baseline.rows}
    after = {row.id: row for row in tuned.rows}
    alone = len(before.keys() ^ after.keys())
    if alone or len(before) != len(baseline.rows) or len(after) != len(tuned.rows):
        raise UsageError(
            f"the results do not hold the same rows of {tuned.split}: {alone} stand in only one of them",
            hint="evaluate both models on the same file with the same evaluation.max_rows and seed",
        )
    changed = [i for i, row in after.items() if row.expected != before[i].expected]
    if changed:
        raise UsageError(
            f"{len(changed)} rows of {tuned.split} expect another answer in one result than in the other",
            hint="the test file changed between the two evaluations: evaluate the baseline again",
        )
    keys = sorted(baseline.settings.keys() | tuned.settings.keys())
    unlike = [k for k in keys if baseline.settings.get(k) != tuned.settings.get(k)]
    if unlike:
        said = ", ".join(f"{k}: {baseline.settings.get(k)} and {tuned.settings.get(k)}" for k in unlike)
        raise UsageError(
            f"the results were made with different settings ({said})",
            hint="evaluate both models with the same settings",
        )
    return [(before[row.id], row) for row in tuned.rows]


@dataclass(frozen=True, slots=True)
class RowChange:
    """One row before and after."""

    before: ScoredRow
    after: ScoredRow
    change: float
    """Tuned score minus baseline score, turned so that more is better."""

    @property
    def kind(self) -> Literal["improved", "regressed", "unchanged"]:
        if abs(self.change) <= TOLERANCE:
            return "unchanged"
        return "improved" if self.change > 0 else "regressed"


def row_changes(baseline: EvalResult, tuned: EvalResult, metric: str | None = None) -> list[RowChange]:
    """Every row with its change in one metric (the primary one by default), worst regressions first."""
    name = metric or tuned.primary
    sign = 1.0 if tuned.metrics[name].greater_is_better else -1.0
    changes = [
        RowChange(before, after, sign * (after.scores[name] - before.scores[name]))
        for before, after in paired_rows(baseline, tuned)
    ]
    return sorted(changes, key=lambda c: (c.change, c.after.id))


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows that share something, compared on their own."""

    name: str
    difference: Difference


def slices(
    baseline: EvalResult,
    tuned: EvalResult,
    by: Callable[[ScoredRow], str] | None = None,
    *,
    metric: str | None = None,
    fewest: int = 10,
    seed: int = 0,
) -> list[Slice]:
    """Parts of the split, worst difference first; p values are corrected over the parts.

    by names the part of a row (default: thirds of prompt length). Parts of fewer rows than `fewest`
    are put together as "other".
    """
    pairs = paired_rows(baseline, tuned)
    name = metric or tuned.primary
    part_of = by or by_length(tuned.rows)
    parts: dict[str, list[tuple[ScoredRow, ScoredRow]]] = {}
    for pair in pairs:
        parts.setdefault(part_of(pair[1]), []).append(pair)
    small = [part for part, rows in parts.items() if len(rows) < fewest]
    if len(small) > 1:
        parts["other"] = [pair for part in small for pair in parts.pop(part)]
    scored = compare_scores(
        [
            PairedScores(
                metric=name,
                baseline=np.array([before.scores[name] for before, _ in rows]),
                tuned=np.array([after.scores[name] for _, after in rows]),
                groups=tuple(before.group for before, _ in rows),
                greater_is_better=tuned.metrics[name].greater_is_better,
            )
            for rows in parts.values()
        ],
        seed=seed,
    )
    sign = 1.0 if tuned.metrics[name].greater_is_better else -1.0
    found = [Slice(part, d) for part, d in zip(parts, scored, strict=True)]
    return sorted(found, key=lambda s: sign * s.difference.delta.value)


def by_length(rows: Sequence[ScoredRow]) -> Callable[[ScoredRow], str]:
    """Names the third of prompt length that a row falls into."""
    lengths = sorted(len(row.prompt) for row in rows)
    first, second = lengths[len(lengths) // 3], lengths[2 * len(lengths) // 3]

    def part(row: ScoredRow) -> str:
        n = len(row.prompt)
        if n <= first:
            return f"prompt up to {first} characters"
        if n <= second:
            return f"prompt of {first + 1} to {second} characters"
        return f"prompt over {second} characters"

    return part


def label_of(metric: str) -> str:
    """The metric's name for people."""
    return METRICS[metric].label if metric in METRICS else metric
