"""Every row once an epoch, no sequence over its length, the same plan on every machine."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.batching import fill, pack, plan_epoch

PLANS = st.fixed_dictionaries(
    {
        "lengths": st.lists(st.integers(1, 64), max_size=120),
        "batch_size": st.integers(1, 9),
        "micro_batch_size": st.integers(1, 4),
        "sequence_length": st.integers(64, 100),
        "packing": st.booleans(),
        "seed": st.integers(0, 5),
        "epoch": st.integers(0, 3),
    }
)


@settings(max_examples=150, deadline=None)
@given(PLANS)
def test_every_row_stands_in_the_plan_once_and_fits(plan) -> None:
    steps = plan_epoch(**plan)
    sequences = [packed for step in steps for micro in step for packed in micro]
    assert sorted(row for packed in sequences for row in packed) == list(range(len(plan["lengths"])))
    for packed in sequences:
        assert sum(plan["lengths"][row] for row in packed) <= plan["sequence_length"]
        assert plan["packing"] or len(packed) == 1
    sizes = [sum(len(micro) for micro in step) for step in steps]
    assert all(size == plan["batch_size"] for size in sizes[:-1])
    assert all(len(micro) <= plan["micro_batch_size"] for step in steps for micro in step)
    assert all(len(micro) == plan["micro_batch_size"] for step in steps for micro in step[:-1])


@settings(max_examples=30, deadline=None)
@given(PLANS)
def test_the_plan_is_a_function_of_seed_and_epoch(plan) -> None:
    assert plan_epoch(**plan) == plan_epoch(**plan)


LENGTHS = random.Random(3).choices(range(5, 61), k=400)
SETTINGS = {"batch_size": 8, "micro_batch_size": 2, "sequence_length": 64}


def test_epochs_and_seeds_differ_in_order() -> None:
    for packing in (True, False):
        plans = [
            plan_epoch(LENGTHS, **SETTINGS, packing=packing, seed=seed, epoch=epoch)
            for seed, epoch in ((1, 0), (1, 1), (2, 0))
        ]
        assert len({str(plan) for plan in plans}) == 3


def test_the_order_is_written_in_stone() -> None:
    """A change here breaks the resuming of runs started before it."""
    plan = plan_epoch(
        [5, 6, 7, 8, 9], batch_size=2, micro_batch_size=1, sequence_length=16, packing=True, seed=1, epoch=0
    )
    assert plan == [(((3, 1),), ((4, 2),)), (((0,),),)]


def test_long_tailed_rows_fill_the_slots() -> None:
    order = random.Random(0)
    lengths = [min(2048, max(8, int(order.lognormvariate(5.0, 1.0)))) for _ in range(20_000)]
    steps = plan_epoch(
        lengths, batch_size=8, micro_batch_size=1, sequence_length=2048, packing=True, seed=0, epoch=0
    )
    assert fill(steps, lengths, 2048) >= 0.99


def test_best_fit_takes_the_fullest_sequence_with_room() -> None:
    assert pack([0, 1, 2, 3], [6, 5, 4, 3], 10) == [(0, 2), (1, 3)]
    assert pack([0, 1, 2], [7, 6, 3], 10) == [(0, 2), (1,)]


def test_grouped_rows_pad_little() -> None:
    def padded(steps) -> int:
        return sum(
            len(micro) * max(LENGTHS[row] for (row,) in micro) for step in steps for micro in step
        ) - sum(LENGTHS)

    grouped = plan_epoch(LENGTHS, **SETTINGS, packing=False, seed=1, epoch=0)
    rows = list(range(len(LENGTHS)))
    random.Random(1).shuffle(rows)
    shuffled = [[[(row,) for row in rows[i : i + 2]]] for i in range(0, len(rows), 2)]
    assert padded(grouped) < 0.15 * padded(shuffled)


def test_drawn_rows_mix_lengths_between_steps_and_sort_them_within() -> None:
    """A step of one length is a step of few labels where length tells the label."""
    rows = [5] * 200 + [50] * 200
    own = {"batch_size": 8, "micro_batch_size": 4, "sequence_length": 64, "packing": False, "seed": 1}
    grouped, drawn = (plan_epoch(rows, **own, epoch=1, grouped=grouped) for grouped in (True, False))

    def mixed(plan) -> int:
        return sum(len({rows[row] for micro in step for (row,) in micro}) == 2 for step in plan)

    assert mixed(grouped) <= 8
    assert mixed(drawn) >= 45
    assert sorted(row for step in drawn for micro in step for (row,) in micro) == list(range(400))
    for step in drawn:
        widths = [rows[row] for micro in step for (row,) in micro]
        assert widths == sorted(widths, reverse=True)
    assert drawn == plan_epoch(rows, **own, epoch=1, grouped=False)


@settings(max_examples=60, deadline=None)
@given(PLANS)
def test_a_run_opens_with_its_largest_steps(plan) -> None:
    """Else the height of memory would be met late, by chance."""
    lengths = plan["lengths"]

    def largest(step) -> int:
        return max(sum(lengths[row] for packed in micro for row in packed) for micro in step)

    steps = plan_epoch(**{**plan, "epoch": 0})
    sizes = [largest(step) for step in steps if sum(map(len, step)) == plan["batch_size"]]
    assert sizes[:2] == sorted(sizes, reverse=True)[:2]
