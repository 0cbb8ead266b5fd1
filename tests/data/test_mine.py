"""Mined negatives are near, wrong and never a positive; the search is exact."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from luthier.data.mine import ByWords, MiningRules, by_embedder, mine, nearest

CORPUS = [
    "The capital of France is Paris.",
    "The capital of Italy is Rome.",
    "The capital of Spain is Madrid.",
    "the capital  of france is paris.",
    "Whales are mammals that live in the sea.",
    "Paris is the capital of France.",
]
PAIR = [("What is the capital of France?", [CORPUS[0]])]


@pytest.mark.parametrize(("queries", "texts", "k"), [(3, 7, 3), (300, 40_000, 20), (5, 4, 10)])
def test_blocks_give_the_exact_nearest(queries: int, texts: int, k: int) -> None:
    draw = np.random.default_rng(0)
    asked = draw.normal(size=(queries, 8)).astype(np.float32)
    corpus = draw.normal(size=(texts, 8)).astype(np.float32)
    corpus[1] = corpus[0]  # equal scores: the first one first
    indices, scores = nearest(asked, corpus, k)
    unit = corpus / np.linalg.norm(corpus, axis=1, keepdims=True)
    whole = np.round(asked / np.linalg.norm(asked, axis=1, keepdims=True) @ unit.T, 6)
    wanted = np.argsort(-whole, axis=1, kind="stable")[:, :k]
    assert indices.shape == scores.shape == (queries, min(k, texts))
    np.testing.assert_allclose(scores, np.take_along_axis(whole, wanted, axis=1), atol=2e-6)
    assert (indices == wanted).mean() > 0.999  # the blocks may round the last digit otherwise


def test_positives_and_their_likes_are_no_negatives() -> None:
    found = mine(PAIR, CORPUS, ByWords, MiningRules(count=3, most_of_positive=None))
    (row,) = found.rows
    assert row.positives == (CORPUS[0],)
    assert set(row.negatives) <= {CORPUS[1], CORPUS[2], CORPUS[4]}
    assert row.negatives[:2] in ((CORPUS[1], CORPUS[2]), (CORPUS[2], CORPUS[1]))
    assert found.left_out == {"says the same as a positive": 1}
    assert list(row.scores) == sorted(row.scores, reverse=True)


class Letters:
    """A toy embedder: counts of letters."""

    label, weights_digest = "letters", "0"

    def encode(self, texts: Sequence[str], *, progress=None) -> np.ndarray:
        return np.array(
            [[text.lower().count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for text in texts], "f4"
        )


def test_the_margin_keeps_what_may_be_right_out() -> None:
    pairs = [("aaaa b", ["aaaa bb"])]
    corpus = ["aaaa bbb", "aa bbbb c", "zzz", "AAAA B"]
    every = mine(pairs, corpus, by_embedder(Letters()), MiningRules(most_of_positive=None))
    assert every.rows[0].negatives == ("aaaa bbb", "aa bbbb c", "zzz")
    assert every.left_out == {"the query itself": 1}
    near = mine(pairs, corpus, by_embedder(Letters()), MiningRules(most_of_positive=0.9))
    assert near.rows[0].negatives == ("aa bbbb c", "zzz")
    assert near.left_out == {"the query itself": 1, "scored too near the positive": 1}
    assert near.short == 1
    wide = mine(pairs, corpus, by_embedder(Letters()), MiningRules(margin=0.6, least=0.1))
    assert wide.rows[0].negatives == ()
    assert wide.left_out == {"the query itself": 1, "scored too near the positive": 2, "scored too low": 1}


def test_skip_depth_and_random_choice() -> None:
    corpus = [f"a{'b' * n}" for n in range(1, 40)]
    pairs = [("a", ["a"])]
    rules = MiningRules(count=4, most_of_positive=None, skip=2, depth=10)
    (row,) = mine(pairs, corpus, by_embedder(Letters()), rules).rows
    assert row.negatives == tuple(corpus[2:6])
    drawn = MiningRules(count=4, most_of_positive=None, skip=2, depth=10, choose="random", seed=1)
    (other,) = mine(pairs, corpus, by_embedder(Letters()), drawn).rows
    assert set(other.negatives) <= set(corpus[2:12])
    assert other.negatives != row.negatives
    assert mine(pairs, corpus, by_embedder(Letters()), drawn).rows == (other,)


def test_bm25_ranks_rare_words_and_short_texts_first() -> None:
    texts = ["the cat", "the dog", "the cat sat on the mat and the cat slept all day long", "the the the"]
    indices, scores = ByWords(["the cat"], texts).top(4)
    assert indices[0].tolist()[0] == 0
    assert scores[0].tolist() == sorted(scores[0].tolist(), reverse=True)
    assert ByWords(["unicorn"], texts).top(2)[0].tolist() == [[-1, -1]]
