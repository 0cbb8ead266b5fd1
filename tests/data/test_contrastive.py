"""No batch holds a false negative, every row comes once, and the plan is the same everywhere."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.batching import plan_epoch
from luthier.data.contrastive import plan_alike, plan_contrastive, text_key
from luthier.tasks.planned import plan_rows
from luthier.training.world import World

TEXTS = st.sampled_from("abcdefghijklmnopqrstuvwxyz")
ROWS = st.lists(st.tuples(TEXTS, TEXTS, st.lists(TEXTS, max_size=2)), max_size=60)


def false_negatives(batch, own, negatives) -> int:
    found = 0
    for one in batch:
        for other in batch:
            if one != other:
                mine = {text_key(text) for text in own[one]}
                found += len(mine & {text_key(text) for text in (*own[other], *negatives[other])})
    return found


@settings(max_examples=200, deadline=None)
@given(ROWS, st.integers(1, 9), st.integers(0, 3), st.integers(0, 2), st.booleans())
def test_no_batch_holds_a_false_negative(rows, size, seed, epoch, grouped) -> None:
    own = [(query, positive.upper()) for query, positive, _ in rows]
    negatives = [hard for *_, hard in rows]
    wanted = {
        "batch_size": size,
        "seed": seed,
        "epoch": epoch,
        "negatives": negatives,
        "lengths": [n % 7 for n in range(len(rows))] if grouped else None,
    }
    batches = plan_contrastive(own, **wanted)
    assert sorted(row for batch in batches for row in batch) == list(range(len(rows)))
    for batch in batches:
        assert 1 <= len(batch) <= size
        assert false_negatives(batch, own, negatives) == 0
    assert plan_contrastive(own, **wanted) == batches


@pytest.mark.parametrize("size", [2, 8, 9])
def test_labelled_texts_meet_their_like_and_others(size: int) -> None:
    labels = [str(place % 7) for place in range(7 * 6 + 3)] + ["alone", "lonely"]
    plans = [plan_alike(labels, batch_size=size, seed=3, epoch=epoch) for epoch in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]
    for plan in plans:
        assert sorted(row for batch in plan for row in batch) == list(range(len(labels)))
        assert all(len(batch) == size for batch in plan[:-1])
    counted = [Counter(labels[row] for row in batch) for batch in plans[0]]
    whole = [found for found in counted if max(found.values()) > 1]
    assert len(whole) >= len(counted) - 3
    assert sum(len(found) > 1 for found in counted) > len(counted) / 2 or size == 2


def test_rows_without_common_texts_fill_their_batches() -> None:
    own = [(f"q{n}", f"p{n}") for n in range(103)]
    batches = plan_contrastive(own, batch_size=16, seed=1, epoch=0)
    assert [len(batch) for batch in batches] == [16] * 6 + [7]
    assert batches != plan_contrastive(own, batch_size=16, seed=1, epoch=1)


def test_a_frequent_query_is_spread_and_batches_stay_full() -> None:
    """Ten questions of thirty answers each among 1,000 rows: 32 batches have a place for all of them."""
    own = [(f"often {n % 10}", f"p{n}") for n in range(300)] + [(f"q{n}", f"p{300 + n}") for n in range(700)]
    order = list(own)
    random.Random(0).shuffle(order)
    batches = plan_contrastive(order, batch_size=32, seed=0, epoch=0)
    assert [len(batch) for batch in batches] == [32] * 31 + [8]
    assert all(false_negatives(batch, order, [()] * 1000) == 0 for batch in batches)


def test_a_text_in_half_the_rows_makes_small_batches_rather_than_wrong_ones() -> None:
    own = [("the same", f"p{n}") for n in range(50)] + [(f"q{n}", f"r{n}") for n in range(50)]
    batches = plan_contrastive(own, batch_size=10, seed=0, epoch=0)
    assert len(batches) == 50
    assert sum(map(len, batches)) == 100


def test_rows_of_like_length_stand_together() -> None:
    draw = random.Random(2)
    lengths = [draw.randint(5, 500) for _ in range(640)]
    own = [(f"q{n}", f"p{n}") for n in range(640)]

    def padded(batches) -> int:
        return sum(len(b) * max(lengths[r] for r in b) for b in batches) - sum(lengths)

    plain = padded(plan_contrastive(own, batch_size=16, seed=0, epoch=0))
    assert padded(plan_contrastive(own, batch_size=16, seed=0, epoch=0, lengths=lengths)) < 0.1 * plain
    drawn = plan_rows(lengths, batch_size=64, micro_batch_size=16, seed=0, epoch=0)
    assert padded([chosen for step in drawn for chosen in step]) < 0.5 * plain


def test_every_world_size_works_through_the_same_steps() -> None:
    """What was done before a stop and what comes after it are the same rows on 1, 2, 3 or 8 devices."""
    lengths = [random.Random(n).randint(4, 60) for n in range(301)]
    settings_ = {"batch_size": 24, "micro_batch_size": 4, "sequence_length": 64, "seed": 3, "epoch": 1}
    for packing in (True, False):
        plan = plan_epoch(lengths, **settings_, packing=packing)
        for world in (1, 2, 3, 8):
            for step in plan:
                sequences = [packed for micro in step for packed in micro]
                parts = [World(rank, world).own(sequences) for rank in range(world)]
                assert sorted(packed for part in parts for packed in part) == sorted(sequences)
                assert max(map(len, parts)) - min(map(len, parts)) <= 1
        # A resume plans the epoch anew and goes on behind the steps that are done.
        again = plan_epoch(lengths, **settings_, packing=packing)
        assert plan[:5] + again[5:] == plan
