"""Hard negatives: texts that look like the answer to a query and are not.

The nearest texts of a corpus are ranked by vectors of an embedder or by words (BM25). What may well be
right after all is left out: known positives, texts that say the same, and texts scored too close to the
positive (positive-aware mining: Moreira et al. 2024, arXiv 2407.15831, found a limit of 95 % of the
positive's score best).
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from luthier.data.contrastive import text_key
from luthier.schema.protocols import Embedder, Progress

if TYPE_CHECKING:
    from numpy.typing import NDArray

_QUERIES, _TEXTS = 256, 16_384
"""Block of the similarity matrix that is in memory at once: 16 MiB of scores."""
_K1, _B = 1.2, 0.75
"""BM25's saturation and length weights, as Lucene sets them."""
_WORD = re.compile(r"\w+")
_SAME_WORDS = 0.9
"""Jaccard similarity of the words from which on two texts say the same."""

Nearest = tuple["NDArray[np.int64]", "NDArray[np.float32]"]
"""Indices into the corpus, best first, and scores: both [queries, k]; index -1 where there is none."""


@dataclass(frozen=True, slots=True)
class MiningRules:
    """What counts as a negative, and how many are taken."""

    count: int = 5
    """Negatives for each query."""
    depth: int = 100
    """How many of the nearest texts are looked at."""
    skip: int = 0
    """How many of the nearest are passed over, after the positives."""
    most_of_positive: float | None = 0.95
    """A negative's score is at most this share of its query's lowest positive's."""
    margin: float | None = None
    """A negative's score is at least this much below the lowest positive's."""
    least: float | None = None
    """Scores below this are no hard negatives."""
    choose: Literal["top", "random"] = "top"
    """``top`` takes the hardest, ``random`` draws from all that are left."""
    seed: int = 17


@dataclass(frozen=True, slots=True)
class MinedRow:
    """A query with its positives and the negatives found, hardest first, and their scores."""

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Mined:
    """One row for each query, in order, and an account of what was left out."""

    rows: tuple[MinedRow, ...]
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason -> texts."""
    short: int = 0
    """Queries with fewer negatives than asked for."""


class Search(Protocol):
    """Queries and texts that are compared. Higher scores are nearer."""

    def top(self, k: int) -> Nearest:
        """The k nearest texts of every query."""

    def score(self, query: int, text: int) -> float:
        """Of one query and one text."""


MakeSearch = Callable[[Sequence[str], Sequence[str]], Search]
"""From queries and texts."""


def nearest(queries: NDArray[np.float32], corpus: NDArray[np.float32], k: int) -> Nearest:
    """Exact cosine top-k, block by block. queries: [queries, d]; corpus: [texts, d].

    Equal scores (to six places) are ranked by index, so the result does not depend on the blocks.
    """
    k = min(k, len(corpus))
    queries, corpus = _unit(queries), _unit(corpus)
    indices = np.empty((len(queries), k), dtype=np.int64)
    scores = np.empty((len(queries), k), dtype=np.float32)
    for start in range(0, len(queries), _QUERIES):
        asked = queries[start : start + _QUERIES]
        best = np.empty((len(asked), 0), dtype=np.int64), np.empty((len(asked), 0), dtype=np.float32)
        for first in range(0, len(corpus), _TEXTS):
            block = np.round(asked @ corpus[first : first + _TEXTS].T, 6)
            near = _partial(block, k) + first
            best = _best(
                np.concatenate([best[0], near], axis=1),
                np.concatenate([best[1], np.take_along_axis(block, near - first, axis=1)], axis=1),
                k,
            )
        indices[start : start + len(asked)], scores[start : start + len(asked)] = best
    return indices, scores


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    vectors = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)


def _partial(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Places of the k highest of each row in any order; of equal ones at the border the first."""
    if scores.shape[1] <= k:
        return np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    border = -np.partition(-scores, k - 1, axis=1)[:, k - 1 : k]
    above = scores > border
    equal = scores == border
    room = k - above.sum(axis=1, keepdims=True)
    taken = above | (equal & (np.cumsum(equal, axis=1) <= room))
    return np.nonzero(taken)[1].reshape(len(scores), k)


def _best(indices: NDArray[np.int64], scores: NDArray[np.float32], k: int) -> Nearest:
    """The k best of each row, by score and then by index."""
    order = np.lexsort((indices, -scores))[:, :k]
    return np.take_along_axis(indices, order, axis=1), np.take_along_axis(scores, order, axis=1)


@dataclass(frozen=True, slots=True)
class _ByVectors:
    queries: NDArray[np.float32]
    corpus: NDArray[np.float32]

    def top(self, k: int) -> Nearest:
        return nearest(self.queries, self.corpus, k)

    def score(self, query: int, text: int) -> float:
        return float(_unit(self.queries[[query]])[0] @ _unit(self.corpus[[text]])[0])


def by_embedder(embedder: Embedder, *, progress: Progress | None = None) -> MakeSearch:
    """Compare by the vectors of an embedder."""

    def make(queries: Sequence[str], corpus: Sequence[str]) -> Search:
        vectors = embedder.encode([*queries, *corpus], progress=progress)
        return _ByVectors(vectors[: len(queries)], vectors[len(queries) :])

    return make


def by_vectors(
    queries: Callable[[Sequence[str]], NDArray[np.float32]],
    corpus: Callable[[Sequence[str]], NDArray[np.float32]],
) -> MakeSearch:
    """Compare by vectors of a model that reads queries and documents in different ways."""

    def make(asked: Sequence[str], texts: Sequence[str]) -> Search:
        return _ByVectors(queries(asked), corpus(texts))

    return make


class ByWords:
    """BM25 over whole words (Robertson and Zaragoza 2009), for mining without a model."""

    def __init__(self, queries: Sequence[str], corpus: Sequence[str]) -> None:
        self._queries = queries
        self._texts = len(corpus)
        self._postings, sizes = _index(corpus)
        usual = max(float(sizes.mean()), 1e-9) if len(sizes) else 1.0
        self._weigh = _K1 * (1 - _B + _B * sizes / usual)

    def top(self, k: int) -> Nearest:
        k = min(k, self._texts)
        indices = np.full((len(self._queries), k), -1, dtype=np.int64)
        scores = np.zeros((len(self._queries), k), dtype=np.float32)
        for row in range(len(self._queries)):
            total = self.scores(row)
            (order,) = _partial(total[None, :], k)
            order = order[np.lexsort((order, -total[order]))]
            indices[row] = np.where(total[order] > 0, order, -1)
            scores[row] = total[order]
        return indices, scores

    def score(self, query: int, text: int) -> float:
        return float(self.scores(query)[text])

    def scores(self, query: int) -> NDArray[np.float32]:
        """Of one query and every text."""
        total = np.zeros(self._texts, dtype=np.float32)
        for word in sorted(set(_words(self._queries[query])) & self._postings.keys()):
            places, counts = self._postings[word]
            rarity = np.log(1 + (self._texts - len(places) + 0.5) / (len(places) + 0.5))
            total[places] += rarity * counts * (_K1 + 1) / (counts + self._weigh[places])
        return total


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _index(
    corpus: Sequence[str],
) -> tuple[dict[str, tuple[NDArray[np.int64], NDArray[np.float32]]], NDArray[np.float32]]:
    """Word -> texts and how often it stands in each; and the number of words of each text."""
    lists: dict[str, tuple[list[int], list[int]]] = {}
    sizes = np.zeros(len(corpus), dtype=np.float32)
    for number, text in enumerate(corpus):
        words = _words(text)
        sizes[number] = len(words)
        for word, count in Counter(words).items():
            places, counts = lists.setdefault(word, ([], []))
            places.append(number)
            counts.append(count)
    postings = {
        word: (np.array(places, dtype=np.int64), np.array(counts, dtype=np.float32))
        for word, (places, counts) in lists.items()
    }
    return postings, sizes


def mine(
    pairs: Sequence[tuple[str, Sequence[str]]],
    corpus: Sequence[str],
    make_search: MakeSearch = ByWords,
    rules: MiningRules | None = None,
) -> Mined:
    """Find hard negatives for queries with their positives.

    corpus: texts to choose from; positives that are not in it are added, for one query's positive is
    another's negative. Equal texts count as one. make_search: ``ByWords`` or ``by_embedder(model)``.
    """
    rules = rules or MiningRules()
    everything = [*(text for text in corpus if text.strip()), *chain.from_iterable(p for _, p in pairs)]
    by_key: dict[str, str] = {}
    for text in everything:
        by_key.setdefault(text_key(text), text)
    texts = list(by_key.values())
    place = {key: index for index, key in enumerate(by_key)}
    search = make_search([query for query, _ in pairs], texts)
    known = [{place[text_key(text)] for text in positives} for _, positives in pairs]
    indices, scores = search.top(rules.depth + rules.skip + max(map(len, known), default=0))
    left_out: Counter[str] = Counter()
    draw = random.Random(f"luthier mine {rules.seed}")
    rows = []
    for number, (query, positives) in enumerate(pairs):
        found = [
            (index, score)
            for index, score in zip(indices[number].tolist(), scores[number].tolist(), strict=True)
            if index >= 0 and index not in known[number]
        ][rules.skip : rules.skip + rules.depth]
        lowest = min((search.score(number, index) for index in sorted(known[number])), default=None)
        limit = _limit(lowest, rules)
        fit = _fit((query, positives), found, texts, limit=limit, rules=rules, left_out=left_out)
        if rules.choose == "random" and len(fit) > rules.count:
            fit = sorted(draw.sample(fit, rules.count), key=lambda pair: (-pair[1], pair[0]))
        taken = fit[: rules.count]
        negatives = tuple(texts[index] for index, _ in taken)
        rows.append(MinedRow(query, tuple(positives), negatives, tuple(round(s, 6) for _, s in taken)))
    return Mined(tuple(rows), dict(left_out), sum(len(row.negatives) < rules.count for row in rows))


def _limit(lowest: float | None, rules: MiningRules) -> float:
    """Highest score that a negative may have."""
    if lowest is None:
        return float("inf")
    limits = [float("inf")]
    if rules.most_of_positive is not None:
        # A share of a negative cosine would lie above it.
        limits.append(lowest * rules.most_of_positive if lowest > 0 else lowest)
    if rules.margin is not None:
        limits.append(lowest - rules.margin)
    return min(limits)


def _fit(
    pair: tuple[str, Sequence[str]],
    found: Sequence[tuple[int, float]],
    texts: Sequence[str],
    *,
    limit: float,
    rules: MiningRules,
    left_out: Counter[str],
) -> list[tuple[int, float]]:
    """Candidates that may be negatives, hardest first. Looks no further than is needed."""
    asked, said = text_key(pair[0]), [set(_words(text)) for text in pair[1]]
    fit: list[tuple[int, float]] = []
    for index, score in found:
        if rules.choose == "top" and len(fit) == rules.count:
            break
        words = set(_words(texts[index]))
        if text_key(texts[index]) == asked:
            left_out["the query itself"] += 1
        elif score > limit:
            left_out["scored too near the positive"] += 1
        elif rules.least is not None and score < rules.least:
            left_out["scored too low"] += 1
        elif any(len(words & one) >= _SAME_WORDS * max(1, len(words | one)) for one in said):
            left_out["says the same as a positive"] += 1
        else:
            fit.append((index, score))
    return fit
