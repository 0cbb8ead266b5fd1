"""Rows and settings for a tiny training that follow from formulas, the same wherever they are made."""

from __future__ import annotations

STEPS, BATCH, RATE, DECAY, CLIP = 30, 4, 5e-3, 0.01, 1.0


def row(number: int) -> dict[str, list[int]]:
    """Ids that count up from a start, their first third without a loss; lengths differ."""
    length = 5 + (7 * number) % 9
    start = 3 + (5 * number) % 23
    ids = [start + place for place in range(length - 1)] + [2]
    return {"input_ids": ids, "labels": [-100] * (length // 3) + ids[length // 3 :]}


TRAIN = [row(number) for number in range(STEPS * BATCH)]
HELD_OUT = [row(1000 + number) for number in range(12)]
