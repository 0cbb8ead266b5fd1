"""Seeds of training are a second source of noise beside the rows."""

import math

import numpy as np
import pytest

from luthier.errors import UsageError
from luthier.evaluation.compare import compare
from luthier.evaluation.ranking import rank
from luthier.evaluation.seeds import difference_over, rank_seeds, score_over, seed_noise
from luthier.evaluation.statistics import metric_of
from luthier.schema.results import EvalResult, ScoredRow


def result(scores, model="m", metric="field_f1"):
    rows = tuple(
        ScoredRow(id=str(n), prompt="p", expected="e", answer="a", scores={metric: float(score)})
        for n, score in enumerate(scores)
    )
    return EvalResult(
        split="test", model=model, weights_digest=model, primary=metric, rows=rows, seconds=0.0,
        metrics={metric: metric_of([float(s) for s in scores])},
    )  # fmt: skip


def skilled(mean, rng, rows=120):
    return result(np.clip(rng.normal(mean, 0.15, rows), 0, 1))


def test_one_seed_is_what_it_was():
    rng = np.random.default_rng(1)
    a, b = skilled(0.5, rng), skilled(0.7, rng)
    found, known = difference_over([a], [b]), compare(a, b).main
    assert found.delta.value == pytest.approx(known.delta.value)
    assert (found.delta.low, found.delta.high) == pytest.approx((known.delta.low, known.delta.high))
    assert found.verdict == known.verdict == "better"
    assert seed_noise([0.3]) == 0.0
    [first, second] = rank_seeds({"a": [a], "b": [b]})
    assert (first.name, second.name) == ("b", "a")
    assert [one.difference.verdict for one in rank({"a": a, "b": b}) if one.difference] == ["worse"]
    assert second.difference.verdict == "worse"
    assert first.spread is None


def test_the_spread_of_seeds_widens_the_interval():
    rows = np.linspace(0.2, 0.8, 200)
    base = [result(rows)]
    close = [result(rows + shift) for shift in (0.10, 0.101, 0.099)]
    apart = [result(rows + shift) for shift in (0.02, 0.10, 0.18)]
    sure, doubtful = difference_over(base, close), difference_over(base, apart)
    assert sure.delta.value == pytest.approx(0.1)
    assert doubtful.delta.value == pytest.approx(0.1)
    assert sure.verdict == "better"
    assert doubtful.delta.low < 0 < doubtful.delta.high
    assert doubtful.verdict == "inconclusive"
    half = 4.302652729911275 * np.std([0.02, 0.10, 0.18], ddof=1) / math.sqrt(3)
    assert seed_noise([0.02, 0.10, 0.18]) == pytest.approx(half)
    assert doubtful.delta.high - doubtful.delta.value >= half


def test_the_mean_of_seeds_covers_the_recipe_that_draws_them():
    """True mean over rows and seeds alike: 95 intervals of 100, where rows alone are held too seldom."""
    rng = np.random.default_rng(5)
    covered = alone = 0
    for _ in range(300):
        rows = rng.normal(0.0, 0.1, 60)
        seeds = [result(0.5 + rows + rng.normal(0, 0.05) + rng.normal(0, 0.02, 60)) for _ in range(3)]
        found = score_over(seeds, "field_f1")
        covered += found.low <= 0.5 <= found.high
        first = seeds[0].metrics["field_f1"]
        alone += first.low <= 0.5 <= first.high
    assert covered >= 0.93 * 300
    assert alone < 0.85 * 300


def test_recipes_are_ranked_by_the_mean_of_their_seeds():
    rng = np.random.default_rng(2)
    good = [skilled(0.8, rng) for _ in range(3)]
    poor = [skilled(0.4, rng) for _ in range(3)]
    placed = rank_seeds({"poor": poor, "good": good})
    assert [one.name for one in placed] == ["good", "poor"]
    assert placed[0].seeds == 3
    assert placed[0].lowest <= placed[0].score.value <= placed[0].highest
    assert placed[1].difference.verdict == "worse"
    with pytest.raises(UsageError, match="primary metrics differ"):
        rank_seeds({"a": [good[0]], "b": [result([0.5] * 120, metric="chrf")]})
