"""Measures of rankings against trec_eval, correlations against scipy, on random and on tied data."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy import stats

from luthier.errors import DataError, UsageError
from luthier.evaluation.compare import compare, slices
from luthier.evaluation.retrieval import (
    CORRELATION_METRICS,
    RANKING_METRICS,
    RETRIEVAL,
    check_metrics,
    correlation_result,
    ranked,
    ranking_result,
    ranking_scores,
    shares_of,
)
from luthier.schema.rows import PairRow

WORDS = {"split": "test", "model": "base", "weights_digest": "0", "seconds": 0.0}


def a_run(seed: int) -> tuple[dict[str, dict[str, int]], dict[str, dict[str, float]]]:
    """Judgements with grades and scores with ties, some queries without anything found."""
    draw = random.Random(seed)
    documents = [f"d{i}" for i in range(150)]
    judged, run = {}, {}
    for q in range(12):
        chosen = draw.sample(documents, draw.randint(1, 20))
        judged[f"q{q}"] = {one: draw.choice([0, 1, 1, 2, 3]) for one in chosen}
        judged[f"q{q}"][chosen[0]] = 1
        run[f"q{q}"] = {one: float(draw.randint(0, 40)) for one in draw.sample(documents, 130)}
    return judged, run


@pytest.mark.parametrize("seed", range(4))
def test_rankings_as_trec_eval(seed: int) -> None:
    library = pytest.importorskip("pytrec_eval")
    judged, run = a_run(seed)
    names = {"ndcg_cut_10": "ndcg@10", "recall_10": "recall@10", "recall_100": "recall@100"}
    names |= {"map_cut_100": "map@100", "success_1": "accuracy@1"}
    asked = {"ndcg_cut.10", "recall.10,100", "map_cut.100", "success.1", "recip_rank"}
    theirs = library.RelevanceEvaluator(judged, asked).evaluate(run)
    for query, scores in run.items():
        order = ranked(list(scores.values()), list(scores))
        ours = ranking_scores(judged[query], order, tuple(RANKING_METRICS))
        for name, own in names.items():
            assert ours[own] == pytest.approx(theirs[query][name], abs=1e-9), (query, name)
        reciprocal = theirs[query]["recip_rank"]
        assert ours["mrr@10"] == pytest.approx(reciprocal if reciprocal >= 0.1 else 0.0)


@pytest.mark.parametrize("ties", [False, True])
def test_shares_add_up_to_scipys_correlation_and_know_its_spread(ties: bool) -> None:
    draw = np.random.default_rng(5)
    wanted = draw.normal(size=60)
    given = wanted + draw.normal(size=60)
    if ties:
        wanted, given = np.round(wanted), np.round(given, 1)
    for by_rank, theirs in ((True, stats.spearmanr), (False, stats.pearsonr)):
        shares = shares_of(given, wanted, by_rank=by_rank)
        assert shares.mean() == pytest.approx(float(theirs(given, wanted).statistic), abs=1e-12)
        # Each pseudo-value as it is defined, the correlation computed anew without the row.
        whole, n = float(theirs(given, wanted).statistic), 60
        left_out = [float(theirs(np.delete(given, i), np.delete(wanted, i)).statistic) for i in range(n)]
        pseudo = n * whole - (n - 1) * np.array(left_out)
        np.testing.assert_allclose(shares, pseudo - pseudo.mean() + whole, atol=1e-9)


def pairs(scores: list[float]) -> list[PairRow]:
    return [
        PairRow("first " * (i % 7 + 1), f"second {i}", score, "f.jsonl", i + 1, f"id{i}", f"key{i}")
        for i, score in enumerate(scores)
    ]


def test_two_models_of_pairs_are_compared_row_by_row() -> None:
    draw = np.random.default_rng(0)
    wanted = np.round(draw.uniform(0, 5, size=300), 1)
    rows = pairs(wanted.tolist())
    metrics = tuple(CORRELATION_METRICS)
    before = correlation_result(rows, wanted + draw.normal(size=300) * 3, metrics=metrics, **WORDS)
    after = correlation_result(
        rows, wanted + draw.normal(size=300), metrics=metrics, **{**WORDS, "model": "tuned"}
    )
    found = compare(before, after)
    assert found.primary == "spearman"
    assert found.verdict == "better"
    main = found.main
    assert main.baseline.low < main.baseline.value < main.baseline.high < main.tuned.low
    assert main.tuned.high <= 1
    assert main.delta.value == pytest.approx(main.tuned.value - main.baseline.value)
    assert compare(before, before).verdict == "inconclusive"
    assert len(slices(before, after)) == 3


def test_a_pair_that_stands_there_twice_counts_as_one_source() -> None:
    rows = pairs([0.0, 1.0, 2.0, 3.0])
    result = correlation_result([*rows, rows[0]], [0.0, 1, 2, 3, 0], metrics=("spearman",), **WORDS)
    assert [row.group for row in result.rows] == ["row id0", None, None, None, "row id0"]
    assert len({row.id for row in result.rows}) == 5


def test_rankings_judged() -> None:
    queries = {"a": "red?", "b": "blue?", "c": "nothing?"}
    documents = {"1": "red", "2": "blue", "3": "green"}
    relevance = {"a": {"1": 1}, "b": {"2": 2, "3": 0}, "c": {"1": 0}}
    rankings = {"a": ["1", "2", "3"], "b": ["1", "2", "3"], "c": ["1", "2", "3"]}
    result = ranking_result(
        rankings, queries=queries, documents=documents, relevance=relevance, metrics=RETRIEVAL, **WORDS
    )
    assert [row.id for row in result.rows] == ["a", "b"], "a query with nothing to find does not count"
    assert result.primary == "ndcg@10"
    assert result.metrics["mrr@10"].value == 0.75
    assert result.rows[1].expected == "blue"
    assert result.rows[1].answer == "red\nblue\ngreen"
    with pytest.raises(DataError, match="no query of test has a relevant document"):
        ranking_result(
            {"c": ["1"]},
            queries=queries,
            documents=documents,
            relevance=relevance,
            metrics=RETRIEVAL,
            **WORDS,
        )


def test_scores_that_are_all_the_same_are_refused() -> None:
    with pytest.raises(DataError, match="1 different scores"):
        correlation_result(pairs([2.0] * 5), [1.0, 2, 3, 4, 5], metrics=("spearman",), **WORDS)


def test_metrics_by_name() -> None:
    assert check_metrics(None, RETRIEVAL, RANKING_METRICS) == RETRIEVAL
    assert check_metrics(["recall@10"], RETRIEVAL, RANKING_METRICS) == ("recall@10",)
    with pytest.raises(UsageError, match="ncdg@10 is not a metric of this purpose") as caught:
        check_metrics(["ncdg@10"], RETRIEVAL, RANKING_METRICS)
    assert "ndcg@10" in (caught.value.hint or "")
