"""How much of a drawn batch is padding, against batches that are drawn and cut."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable

import pytest

from luthier.data.stats import lengths
from luthier.sizing.padding import FILLED, chunks_of, padding_of

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
