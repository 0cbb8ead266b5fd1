"""How much of a drawn batch is padding, against batches that are drawn and cut."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable

import pytest

from luthier.data.stats import lengths
from luthier.schema.estimate import TrainingShape
from luthier.sizing.padding import FILLED, chunks_of, drawn_lengths, padding_of, pieces_of

KINDS: dict[str, Callable[[random.Random], int]] = {
    "questions": lambda draw: max(4, int(draw.lognormvariate(3.2, 0.6))),
    "titles": lambda draw: draw.randint(18, 30),
    "reviews": lambda draw: min(512, max(10, int(draw.lognormvariate(4.5, 0.9)))),
    "equal": lambda _: 32,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("drawn", "most"), [(8, 8), (64, 64), (64, 16)])
@pytest.mark.parametrize("filled", [0, FILLED])
def test_it_is_foretold_from_quantiles(kind: str, drawn: int, most: int, filled: int) -> None:
    draw = random.Random(1)
    held = [KINDS[kind](draw) for _ in range(3000)]
    counted = []
    for _ in range(60):
        rows = sorted(draw.sample(held, drawn), reverse=True)
        places = sum((end - first) * width for first, end, width in chunks_of(rows, most, filled=filled))
        counted.append(places / sum(rows))
    told = padding_of(lengths(held), drawn=drawn, most=most, longest=512, filled=filled)
    real = statistics.fmean(counted)
    assert 0.95 * real <= told <= 1.3 * real
    assert told >= 1
    assert padding_of(lengths(held), drawn=drawn, most=1, longest=512, filled=filled) == 1
    assert padding_of(lengths(held), drawn=drawn, most=most, longest=4, filled=filled) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [8, 64])
def test_no_step_of_a_training_has_longer_texts_than_are_counted(kind: str, rows: int) -> None:
    draw = random.Random(2)
    held = [KINDS[kind](draw) for _ in range(3000)]
    told = drawn_lengths(lengths(held), rows=rows, texts=2, longest=512, steps=400)
    assert len(told) == 2 * rows
    assert list(told) == sorted(told, reverse=True)
    for _ in range(400):
        step = sorted(draw.sample(held, rows), reverse=True)
        assert all(real <= counted for real, counted in zip(step, told[::2], strict=True))
    uneven = kind in {"questions", "reviews"} and rows == 64  # of a few rows any may be of the longest
    assert sum(told) <= (0.7 if uneven else 1.0) * 2 * rows * max(held)


def test_compared_texts_go_through_in_pieces_and_others_as_the_longest() -> None:
    told = (*(128,) * 72, *(92,) * 56)
    shape = TrainingShape(
        micro_batch_size=64, sequence_length=256, documents=2, padded=True, compared=4096, text_lengths=told
    )
    assert pieces_of(shape) == ((72, 128), (56, 92))
    assert pieces_of(shape.model_copy(update={"text_lengths": ()})) == ((128, 128),)
    assert pieces_of(shape.model_copy(update={"sequence_length": 128})) == ((128, 64),)
    assert pieces_of(shape.model_copy(update={"micro_batch_size": 16}))[0] == (32, 128)
