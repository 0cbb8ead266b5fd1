"""Ranking of several models: order, ties, correction over many."""

import numpy as np
import pytest

from luthier.errors import UsageError
from luthier.evaluation.ranking import rank
from luthier.evaluation.statistics import metric_of
from luthier.schema.results import EvalResult, ScoredRow


def result(scores, metric="exact_match"):
    rows = tuple(
        ScoredRow(id=str(n), prompt="p", expected="e", answer="a", scores={metric: float(score)})
        for n, score in enumerate(scores)
    )
    return EvalResult(
        split="test", model="m", weights_digest="w", metrics={metric: metric_of([float(s) for s in scores])},
        primary=metric, rows=rows, seconds=1,
    )  # fmt: skip


def test_best_first_with_ties_and_clear_losers():
    best = [1] * 80 + [0] * 20
    near = [1] * 78 + [0] * 22
    far = [1] * 30 + [0] * 70
    ranked = rank({"far": result(far), "near": result(near), "best": result(best)})
    assert [one.name for one in ranked] == ["best", "near", "far"]
    assert ranked[0].difference is None
    assert ranked[1].difference.verdict == "inconclusive"
    assert ranked[2].difference.verdict == "worse"
    assert ranked[2].difference.delta.value == pytest.approx(-0.5)


def test_one_of_many_does_not_win_by_chance():
    draw = np.random.default_rng(5)
    told = 0
    for _ in range(40):
        results = {str(n): result(draw.random(60) < 0.5) for n in range(8)}
        told += any(one.difference.verdict != "inconclusive" for one in rank(results)[1:])
    # eight equal models: the best of them leads by chance, and is seldom taken for better
    assert told <= 12


def test_what_cannot_be_ranked():
    with pytest.raises(UsageError, match="primary metrics differ"):
        rank({"a": result([1, 0]), "b": result([1, 0], "chrf")})
    with pytest.raises(UsageError, match="same rows"):
        rank({"a": result([1, 0]), "b": result([1, 0, 1])})
