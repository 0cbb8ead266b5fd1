"""Odd and broken files: no traceback, and every row accounted for.

LUTHIER_TEST_FUZZ=20000 puts that many inputs through (see benchmarks/data/fuzz.py, which this runs).
"""

from __future__ import annotations

import os
import random
from collections import Counter

from scripts import script


def test_no_input_brings_a_traceback_and_no_row_is_lost(make_tokenizer) -> None:
    fuzz = script("benchmarks/data/fuzz")
    counts: Counter[str] = Counter()
    tokenizer = make_tokenizer("chatml")
    inputs = int(os.environ.get("LUTHIER_TEST_FUZZ", "150"))
    for number in range(inputs):
        draw = random.Random(f"tests/{number}")
        raw = draw.choice([fuzz.rows_of, fuzz.mutated, fuzz.mutated, fuzz.tabular])(draw)
        fuzz.one(raw, draw.choice(fuzz.SUFFIXES), draw, tokenizer, counts)
    assert counts["checked"] > 0.8 * inputs
    assert counts["rows kept"] > 0.1 * counts["rows read"]
    assert counts["fixed"] > 0.05 * inputs
