"""The space of a search as it is typed."""

from __future__ import annotations

import pytest

from luthier.errors import UsageError
from luthier.runs.sweep.space import edges, grid, inside, read_axis, size_of, split_words, words_of, written


def test_ranges_lists_and_plain_settings_are_told_apart() -> None:
    space, fixed = split_words(
        [
            "training.learning_rate=1e-5..1e-3:log",
            "method.rank=8,16,64",
            "training.epochs=2",
            "training.warmup_share=0..0.2:0.05",
            "training.batch_size=4..32:log",
            "data.train=../rows.jsonl",
            "training.trackers=[tensorboard,wandb]",
        ]
    )
    rate, rank, warmup, batch = space
    assert (rate.low, rate.high, rate.log, rate.whole) == (1e-5, 1e-3, True, False)
    assert rank.choices == ("8", "16", "64")
    assert (warmup.low, warmup.high, warmup.step, warmup.count) == (0.0, 0.2, 0.05, 5)
    assert (batch.whole, batch.log, batch.count) == (True, True, 29)
    assert fixed == ("training.epochs=2", "data.train=../rows.jsonl", "training.trackers=[tensorboard,wandb]")


def test_steps_end_within_the_range() -> None:
    axis = read_axis("method.dropout=0..0.25:0.1")
    assert axis is not None
    assert axis.high == 0.2
    assert [one["method.dropout"] for one in grid([axis])] == ["0.0", "0.1", "0.2"]


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("training.learning_rate=1e-3..1e-5", "not below"),
        ("training.learning_rate=0..1:log", "above zero"),
        ("training.learning_rate=1..2:lgo", "neither log nor a step"),
        ("method.rank=8,,16", "empty or a repeated"),
        ("method.rank=8,16,8", "empty or a repeated"),
        ("method.rank=8..", "neither a range nor a value"),
        ("model.id=a,b", "--models"),
        ("data.max_rows=100..300", "--learning-curve"),
        ("seed=1,2,3", "noise"),
        ("evaluation.max_rows=1,2", "does not change the training"),
        ("similarity.scale=10..30", "change what the loss means"),
    ],
)
def test_what_cannot_be_searched_says_why(word: str, why: str) -> None:
    with pytest.raises(UsageError) as told:
        split_words([word])
    assert why in str(told.value)


def test_a_setting_is_named_once() -> None:
    with pytest.raises(UsageError, match="named twice"):
        split_words(["method.rank=8,16", "method.rank=32,64"])


def test_the_recipes_own_value_is_found_in_the_space() -> None:
    rate, rank, epochs = split_words(
        ["training.learning_rate=1e-5..1e-3:log", "method.rank=8,16", "training.epochs=1..4"]
    )[0]
    assert inside(rate, 2e-4) == "0.0002"
    assert inside(rate, 2e-3) is None
    assert inside(rank, 16) == "16"
    assert inside(rank, 32) is None
    assert inside(epochs, 2.0) == "2"
    assert inside(epochs, 2.5) is None
    assert inside(epochs, None) is None


def test_size_edges_and_words() -> None:
    space, _ = split_words(["method.rank=8,16,64", "training.epochs=1..3"])
    assert size_of(space) == 9 == len(list(grid(space)))
    assert edges(space) == [{"method.rank": a, "training.epochs": b} for a in ("8", "64") for b in ("1", "3")]
    wide, _ = split_words(
        [f"training.beta{n}=0.1..0.9" for n in (1, 2)] + ["method.rank=8,64", "method.alpha=8,16"]
    )
    assert size_of(wide) is None
    assert len(edges(wide)) == 8
    assert words_of({"training.learning_rate": "0.00010784413478755", "method.rank": "8"}) == (
        "learning_rate 0.000108, rank 8"
    )
    (rate,), _ = split_words(["training.learning_rate=1e-5..1e-3:log"])
    assert float(written(rate, 0.1 + 0.2)) == 0.1 + 0.2
