"""Seeds of training as a second source of noise: several runs of one recipe, judged on the same rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from luthier.errors import UsageError
from luthier.evaluation.compare import compare
from luthier.evaluation.statistics import LEVEL, holm, t_quantile, verdict_of
from luthier.schema.base import Record
from luthier.schema.results import Difference, EvalResult, Metric


class Seeded(Record):
    """One recipe's place, over all its seeds."""

    name: str
    seeds: int
    metric: str
    score: Metric
    """Mean over the seeds; its interval holds the noise of rows and, from two seeds on, that of seeds."""
    lowest: float
    highest: float
    """The worst and the best seed's own score."""
    spread: float | None
    """Standard deviation between seeds; None for one."""
    difference: Difference | None
    """To the best recipe on the same rows; None for the best itself."""


def seed_noise(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean over seeds (Student's t); 0 for one, which tells nothing of it."""
    if len(values) < 2:
        return 0.0
    deviation = float(np.std(values, ddof=1))
    return t_quantile(0.5 + LEVEL / 2, len(values) - 1) * deviation / math.sqrt(len(values))


def widened(
    metric: Metric, value: float, below: float, above: float, noise: float, *, least: float, most: float
) -> Metric:
    """A score with an interval of two independent parts (Zou & Donner 2008, Stat. Med. 27:1693-1702).

    below, above: distances of the limits that the rows alone give. least, most: what there can be.
    """
    low = max(value - math.hypot(below, noise), least)
    high = min(value + math.hypot(above, noise), most)
    return metric.model_copy(update={"value": value, "low": low, "high": high})


def score_over(results: Sequence[EvalResult], metric: str) -> Metric:
    """The mean score of several seeds. Its noise of rows is their mean: all were judged on the same ones."""
    found = [result.metrics[metric] for result in results]
    value = float(np.mean([one.value for one in found]))
    below = float(np.mean([one.value - one.low for one in found]))
    above = float(np.mean([one.high - one.value for one in found]))
    noise = seed_noise([one.value for one in found])
    least, most = (0.0, 1.0) if _shares(found) else (-math.inf, math.inf)
    return widened(found[0], value, below, above, noise, least=least, most=most)


def _shares(found: Sequence[Metric]) -> bool:
    """Whether all these scores run from 0 to 1."""
    return all(one.low >= 0 and one.high <= 1 for one in found)


def difference_over(baseline: Sequence[EvalResult], tuned: Sequence[EvalResult]) -> Difference:
    """Tuned minus baseline by their primary metric, each over its seeds, on the same rows.

    Rows are paired in every pair of seeds; the interval adds the noise of both sides' seeds to the mean of
    the pairs' own. p is the largest of the pairs, so that no lucky seed decides, and a verdict asks for ten
    changed rows in each. Errors: UsageError where rows or metrics differ.
    """
    pairs = [compare(before, after).main for before in baseline for after in tuned]
    first = pairs[0]
    noises = [seed_noise([r.metrics[first.metric].value for r in side]) for side in (baseline, tuned)]
    value = float(np.mean([d.delta.value for d in pairs]))
    below = float(np.mean([d.delta.value - d.delta.low for d in pairs]))
    above = float(np.mean([d.delta.high - d.delta.value for d in pairs]))
    most = 1.0 if _shares([end for d in pairs for end in (d.baseline, d.tuned)]) else math.inf
    delta = widened(first.delta, value, below, above, math.hypot(*noises), least=-most, most=most)
    p_value = max(d.p_value for d in pairs)
    changed = min(d.improved + d.regressed for d in pairs)
    return first.model_copy(
        update={
            "baseline": score_over(baseline, first.metric),
            "tuned": score_over(tuned, first.metric),
            "delta": delta,
            "p_value": p_value,
            "verdict": verdict_of(delta, p_value, changed),
            "improved": round(float(np.mean([d.improved for d in pairs]))),
            "regressed": round(float(np.mean([d.regressed for d in pairs]))),
            "detectable": None,
            "rows_needed": None,
        }
    )


def rank_seeds(groups: Mapping[str, Sequence[EvalResult]]) -> list[Seeded]:
    """Recipes by the mean of their seeds, best first, each against the best; verdicts corrected (Holm).

    Errors: UsageError where rows or primary metrics differ.
    """
    primaries = {result.primary for results in groups.values() for result in results}
    if len(primaries) > 1:
        raise UsageError(
            f"the primary metrics differ: {', '.join(sorted(primaries))}",
            hint="judge all of them with the same metrics",
        )
    metric = primaries.pop()
    scores = {name: score_over(results, metric) for name, results in groups.items()}
    sign = -1.0 if next(iter(scores.values())).greater_is_better else 1.0
    order = sorted(groups, key=lambda name: (sign * scores[name].value, list(groups).index(name)))
    found = {name: difference_over(groups[order[0]], groups[name]) for name in order[1:]}
    corrected = dict(zip(found, holm([d.p_value for d in found.values()]), strict=True))
    placed = []
    for name in order:
        values = [result.metrics[metric].value for result in groups[name]]
        difference = found.get(name)
        if difference is not None:
            verdict = difference.verdict if corrected[name] <= 1 - LEVEL else "inconclusive"
            difference = difference.model_copy(update={"p_value": corrected[name], "verdict": verdict})
        placed.append(
            Seeded(
                name=name,
                seeds=len(values),
                metric=metric,
                score=scores[name],
                lowest=min(values),
                highest=max(values),
                spread=float(np.std(values, ddof=1)) if len(values) > 1 else None,
                difference=difference,
            )
        )
    return placed
