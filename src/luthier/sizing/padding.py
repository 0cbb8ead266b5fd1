"""Chunks of inputs that go through the model at once, and how much of them is padding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from luthier.schema.data import Lengths

NARROWER, FEWEST = 0.75, 8
"""A chunk ends where inputs are so much shorter than its first, if it holds so many already."""
FILLED = 8192
"""On a GPU it must hold so many tokens too: a smaller chunk takes as long to launch as it saves."""


def chunks_of(lengths: Sequence[int], most: int, *, filled: int = 0) -> tuple[tuple[int, int, int], ...]:
    """(first, end, width) of chunks of at most so many inputs, longest first, little of them padding.

    filled: tokens, padding among them, that a chunk has before it may end for shorter inputs.
    """
    found: list[tuple[int, int, int]] = []
    for place, length in enumerate(lengths):
        if found:
            first, end, width = found[-1]
            held = end - first
            narrow = length < NARROWER * width and held >= FEWEST and held * width >= filled
            if end - first < most and not narrow:
                found[-1] = (first, place + 1, width)
                continue
        found.append((place, place + 1, int(length)))
    return tuple(found)


def padding_of(lengths: Lengths, *, drawn: int, most: int, longest: int, filled: int) -> float:
    """Places that go through the model for each token, where so many inputs are drawn and cut into chunks.

    drawn: inputs of a step; longest: where inputs are cut. The step is taken to hold the quantiles of all
    lengths: on drawn rows of four kinds of lengths that is 0 to 22 % above what was counted.
    """
    points = (
        (0.0, lengths.minimum), (0.5, lengths.median), (0.9, lengths.p90), (0.95, lengths.p95),
        (0.99, lengths.p99), (1.0, lengths.maximum),
    )  # fmt: skip
    taken = [max(1, min(longest, _between(points, 1 - (place + 0.5) / drawn))) for place in range(drawn)]
    places = sum((end - first) * width for first, end, width in chunks_of(taken, most, filled=filled))
    return places / sum(taken)


def _between(points: Sequence[tuple[float, int]], share: float) -> int:
    """A quantile, on straight lines between those that are known."""
    for (low, left), (high, right) in pairwise(points):
        if share <= high:
            return round(left + (right - left) * (share - low) / (high - low))
    return points[-1][1]
