"""Several models on the same rows, ranked with honest ties."""

from __future__ import annotations

from collections.abc import Mapping

from luthier.errors import UsageError
from luthier.evaluation.compare import compare
from luthier.evaluation.statistics import holm
from luthier.schema.base import Record
from luthier.schema.results import Difference, EvalResult, Metric


class Ranked(Record):
    """One model's place."""

    name: str
    metric: str
    score: Metric
    difference: Difference | None
    """To the best: the best as baseline, this one as tuned; None for the best itself."""


def rank(results: Mapping[str, EvalResult]) -> list[Ranked]:
    """The models by their primary metric, best first, each against the best on the same rows.

    p values are corrected over the comparisons (Holm), so that one of many does not win by chance; a
    verdict is only kept where it stands the correction. The best was chosen for being best: its lead is
    not an unbiased estimate, which is why a tie is worth more than a place. Errors: UsageError where
    rows or primary metrics differ.
    """
    primaries = {result.primary for result in results.values()}
    if len(primaries) > 1:
        raise UsageError(
            f"the primary metrics differ: {', '.join(sorted(primaries))}",
            hint="judge all of them with the same metrics",
        )
    metric = primaries.pop()
    scores = {name: result.metrics[metric] for name, result in results.items()}
    sign = -1.0 if next(iter(scores.values())).greater_is_better else 1.0
    order = sorted(results, key=lambda name: (sign * scores[name].value, list(results).index(name)))
    best = order[0]
    found = {name: compare(results[best], results[name]).main for name in order[1:]}
    corrected = dict(zip(found, holm([d.p_value for d in found.values()]), strict=True))
    ranked = [Ranked(name=best, metric=metric, score=scores[best], difference=None)]
    for name in order[1:]:
        difference = found[name]
        if corrected[name] > 0.05:
            difference = difference.model_copy(update={"verdict": "inconclusive"})
        difference = difference.model_copy(update={"p_value": corrected[name]})
        ranked.append(Ranked(name=name, metric=metric, score=scores[name], difference=difference))
    return ranked
