"""Rankings and similarities judged: nDCG, reciprocal rank, precision, recall; correlation with scores.

Every measure is a number of one query or one pair, so that base and tuned model are compared row by row.
The measures of rankings are those of trec_eval; a correlation is spread over its rows by the jackknife.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.errors import DataError, UsageError, did_you_mean
from luthier.evaluation.statistics import metric_of
from luthier.schema.results import EvalResult, Metric, ScoredRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from luthier.schema.rows import PairRow

    Floats = NDArray[np.float64]

RANKING_METRICS: dict[str, tuple[str, str]] = {
    "ndcg@10": (
        "nDCG@10",
        "Gain of the first ten documents, each the grade over log2(place + 1), as a share of the best "
        "order's (trec_eval ndcg_cut).",
    ),
    "mrr@10": ("MRR@10", "One over the place of the first relevant document, 0 beyond ten."),
    "map@100": ("MAP@100", "Mean precision at each relevant document among the first hundred."),
    "accuracy@1": ("Accuracy@1", "The first document is relevant."),
    "recall@10": ("Recall@10", "Share of the relevant documents among the first ten."),
    "recall@100": ("Recall@100", "Share of the relevant documents among the first hundred."),
}
"""Measure -> its name for people, and what it is."""
CORRELATION_METRICS: dict[str, tuple[str, str]] = {
    "spearman": ("Spearman", "Rank correlation of the model's scores with the expected ones."),
    "pearson": ("Pearson", "Linear correlation of the model's scores with the expected ones."),
}
RETRIEVAL = ("ndcg@10", "mrr@10", "map@100", "recall@10", "recall@100")
RERANKING = ("ndcg@10", "mrr@10", "map@100", "accuracy@1")
SHOWN = 3
"""Documents of an answer that are shown to people."""


def label(metric: str) -> str | None:
    """A measure's name for people, None where it is none of this module."""
    found = RANKING_METRICS.get(metric) or CORRELATION_METRICS.get(metric)
    return None if found is None else found[0]


def check_metrics(
    asked: Sequence[str] | None, usual: Sequence[str], known: Mapping[str, Any]
) -> tuple[str, ...]:
    """The measures to take, the first of them primary. Raises UsageError for one that is not known here."""
    for name in asked or ():
        if name not in known:
            raise UsageError(
                f"{name} is not a metric of this purpose",
                hint=did_you_mean(name, known) or f"known metrics: {', '.join(known)}",
            )
    return tuple(asked) if asked else tuple(usual)


def ranked(scores: Sequence[float] | Floats, ids: Sequence[str]) -> list[str]:
    """Ids by falling score; equal scores by falling id, as trec_eval orders them."""
    order = sorted(range(len(ids)), key=lambda i: ids[i], reverse=True)
    return [ids[i] for i in sorted(order, key=lambda i: -float(scores[i]))]


def ranking_scores(
    relevance: Mapping[str, float], order: Sequence[str], metrics: Sequence[str] = RETRIEVAL
) -> dict[str, float]:
    """Measures of one query: relevance is document id -> grade, order its documents, best first."""
    return {
        name: _MEASURES[name.partition("@")[0]](relevance, order, int(name.partition("@")[2]))
        for name in metrics
    }


def _ndcg(relevance: Mapping[str, float], order: Sequence[str], k: int) -> float:
    gains = [max(relevance.get(one, 0), 0) for one in order[:k]]
    best = sorted((grade for grade in relevance.values() if grade > 0), reverse=True)[:k]
    ideal = sum(grade / math.log2(place + 2) for place, grade in enumerate(best))
    return sum(gain / math.log2(place + 2) for place, gain in enumerate(gains)) / ideal if ideal else 0.0


def _reciprocal(relevance: Mapping[str, float], order: Sequence[str], k: int) -> float:
    places = (place for place, one in enumerate(order[:k], 1) if relevance.get(one, 0) > 0)
    first = next(places, None)
    return 0.0 if first is None else 1 / first


def _average_precision(relevance: Mapping[str, float], order: Sequence[str], k: int) -> float:
    relevant = sum(grade > 0 for grade in relevance.values())
    found, total = 0, 0.0
    for place, one in enumerate(order[:k], 1):
        if relevance.get(one, 0) > 0:
            found += 1
            total += found / place
    return total / relevant if relevant else 0.0


def _recall(relevance: Mapping[str, float], order: Sequence[str], k: int) -> float:
    relevant = sum(grade > 0 for grade in relevance.values())
    return sum(relevance.get(one, 0) > 0 for one in order[:k]) / relevant if relevant else 0.0


def _accuracy(relevance: Mapping[str, float], order: Sequence[str], k: int) -> float:
    return float(any(relevance.get(one, 0) > 0 for one in order[:k]))


_MEASURES = {
    "ndcg": _ndcg,
    "mrr": _reciprocal,
    "map": _average_precision,
    "recall": _recall,
    "accuracy": _accuracy,
}


def ranking_result(
    rankings: Mapping[str, Sequence[str]],
    *,
    queries: Mapping[str, str],
    documents: Mapping[str, str],
    relevance: Mapping[str, Mapping[str, float]],
    metrics: Sequence[str],
    **words: Any,
) -> EvalResult:
    """One model's rankings judged. rankings: query id -> document ids, best first.

    Only queries with a relevant document count: nothing can be found for others. words: what else an
    EvalResult says (split, model, weights_digest, seconds, settings, reason).
    """
    scored = []
    for query, order in rankings.items():
        wanted = relevance.get(query, {})
        right = [one for one, grade in wanted.items() if grade > 0]
        if not right:
            continue
        scored.append(
            ScoredRow(
                id=query,
                prompt=queries[query],
                expected="\n".join(_short(documents.get(one, one)) for one in sorted(right)[:SHOWN]),
                answer="\n".join(_short(documents[one]) for one in order[:SHOWN]),
                scores=ranking_scores(wanted, order, metrics),
            )
        )
    if not scored:
        raise DataError(
            f"no query of {words.get('split')} has a relevant document, so there is nothing to score",
            hint="give judgements (qrels) with grades above 0, or rows with a positive text",
        )
    return _result(scored, metrics, **words)


def _short(text: str, most: int = 160) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= most else one_line[: most - 3] + "..."


def _result(rows: Sequence[ScoredRow], metrics: Sequence[str], **words: Any) -> EvalResult:
    groups = [row.group for row in rows]
    found: dict[str, Metric] = {
        name: metric_of([row.scores[name] for row in rows], groups) for name in metrics
    }
    settings = {"metrics": ", ".join(metrics), **words.pop("settings", {})}
    return EvalResult(metrics=found, primary=metrics[0], rows=tuple(rows), settings=settings, **words)


def correlation_result(
    rows: Sequence[PairRow], scores: Sequence[float] | Floats, *, metrics: Sequence[str], **words: Any
) -> EvalResult:
    """One model's scores of pairs held against the expected ones.

    A row's score is its share of the correlation (see `shares_of`). Raises DataError where the expected
    scores are all the same, for then nothing correlates with them.
    """
    wanted = np.array([row.score for row in rows])
    given = np.asarray(scores, dtype=np.float64)
    if len(rows) < 3 or len(np.unique(wanted)) < 2:
        raise DataError(
            f"the {len(rows)} pairs of {words.get('split')} have {len(np.unique(wanted))} different scores: "
            "no correlation can be told",
            file=rows[0].file if rows else None,
            hint="give at least three pairs, scored differently",
        )
    shares = {name: shares_of(given, wanted, by_rank=name == "spearman") for name in metrics}
    scored = [
        ScoredRow(
            id=row.id,
            prompt=f"{row.first}\n{row.second}",
            expected=f"{row.score:g}",
            answer=f"{score:.4f}",
            scores={name: float(shares[name][i]) for name in metrics},
            group=row.group,
        )
        for i, (row, score) in enumerate(zip(_apart(rows), given, strict=True))
    ]
    found = _result(scored, metrics, **words)
    bounded = {
        name: metric.model_copy(update={"low": max(metric.low, -1.0), "high": min(metric.high, 1.0)})
        for name, metric in found.metrics.items()
    }
    return found.model_copy(update={"metrics": bounded})


def _apart(rows: Sequence[PairRow]) -> list[PairRow]:
    """Rows whose ids differ: one that stands there twice is named twice, and counts as one."""
    from dataclasses import replace

    seen: dict[str, int] = {}
    found = []
    for row in rows:
        seen[row.id] = seen.get(row.id, 0) + 1
        again = seen[row.id]
        found.append(row if again == 1 else replace(row, id=f"{row.id}#{again}", group=f"row {row.id}"))
    twice = {name for name, count in seen.items() if count > 1}
    return [replace(row, group=f"row {row.id}") if row.id in twice else row for row in found]


def shares_of(left: Floats, right: Floats, *, by_rank: bool) -> Floats:
    """Each row's share of a correlation: the jackknife's pseudo-values, moved so that their mean is it.

    Their spread is the correlation's (Efron & Stein 1981, Annals of Statistics 9:586-596), ranks taken
    anew without each row. So intervals, paired tests and verdicts for means hold for it too;
    ``benchmarks/proof/correlation.py`` has their coverage.
    """
    n = len(left)
    whole = correlation(left, right, by_rank=by_rank)
    without = np.empty(n)
    size = max(1, 4_000_000 // n)
    for start in range(0, n, size):
        part = np.arange(start, min(start + size, n))
        without[part] = _without(left, right, part, by_rank=by_rank)
    pseudo = n * whole - (n - 1) * without
    return np.asarray(pseudo - pseudo.mean() + whole)


def correlation(left: Floats, right: Floats, *, by_rank: bool) -> float:
    """Pearson's, or Spearman's by rank; 0 where either side does not vary."""
    if by_rank:
        left, right = _ranks(left), _ranks(right)
    a, b = left - left.mean(), right - right.mean()
    spread = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / spread if spread > 0 else 0.0


def _ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return np.asarray((last - (count - 1) / 2)[place], dtype=np.float64)


def _without(left: Floats, right: Floats, part: NDArray[np.intp], *, by_rank: bool) -> Floats:
    """The correlation without each row of part: [part]."""
    sides = []
    for values in (left, right):
        if by_rank:
            # Without a row, those above it move down by one, those equal to it by half.
            own = values[part, None]
            moved = (own < values[None, :]) + 0.5 * (own == values[None, :])
            sides.append(_ranks(values)[None, :] - moved)
        else:
            sides.append(np.broadcast_to(values, (len(part), len(values))))
    kept = np.ones((len(part), len(left)))
    kept[np.arange(len(part)), part] = 0
    m = len(left) - 1
    a, b = ((side - (side * kept).sum(axis=1, keepdims=True) / m) * kept for side in sides)
    spread = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return np.asarray(np.divide((a * b).sum(axis=1), spread, out=np.zeros(len(part)), where=spread > 0))
