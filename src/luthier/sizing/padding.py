"""Chunks of inputs that go through the model at once, how long they are, and how much of them is padding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from luthier.schema.data import Lengths
from luthier.schema.estimate import TrainingShape

NARROWER, FEWEST = 0.75, 8
"""A chunk ends where inputs are so much shorter than its first, if it holds so many already."""
FILLED = 8192
"""On a GPU it must hold so many tokens too: a smaller chunk takes as long to launch as it saves."""
RARE = 0.01
"""How likely a training may have one step with longer texts than were counted."""


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


def pieces_of(shape: TrainingShape) -> tuple[tuple[int, int], ...]:
    """(texts, tokens of the longest) of each piece that a step's texts go through the model in on a GPU.

    One piece of the longest texts where their lengths are not known, or their vectors are not compared.
    """
    most, span = shape.micro_batch_size * shape.documents, shape.sequence_length // shape.documents
    if not shape.compared or not shape.text_lengths:
        return ((most, span),)
    lengths = [min(length, span) for length in shape.text_lengths]
    return tuple((end - first, width) for first, end, width in chunks_of(lengths, most, filled=FILLED))


def drawn_lengths(lengths: Lengths, *, rows: int, texts: int, longest: int, steps: int) -> tuple[int, ...]:
    """Tokens of a step's texts, longest first, such that hardly a training has a step of longer ones.

    lengths: of each row's longest text, as which all its texts count; longest: where texts are cut; steps:
    of the training. Of the rows of a step as many lie beyond each known quantile as chance allows
    (a binomial's tail, `RARE` shared out over quantiles and steps); between two quantiles the upper counts.
    """
    known = ((lengths.p99, 0.01), (lengths.p95, 0.05), (lengths.p90, 0.1), (lengths.median, 0.5))
    found: list[int] = []
    above = lengths.maximum
    for value, share in known:
        many = _at_most(rows, share, RARE / (len(known) * max(1, steps)))
        found += [above] * (many - len(found))
        above = value
    found += [above] * (rows - len(found))
    return tuple(max(1, min(longest, length)) for length in found for _ in range(texts))


def _at_most(rows: int, share: float, rare: float) -> int:
    """The least number that a draw of rows exceeds less often than that, each counting with that chance."""
    beyond, count = 0.0, rows
    while count > 0:
        ways = math.lgamma(rows + 1) - math.lgamma(count + 1) - math.lgamma(rows - count + 1)
        beyond += math.exp(ways + count * math.log(share) + (rows - count) * math.log1p(-share))
        if beyond > rare:
            break
        count -= 1
    return count


def _between(points: Sequence[tuple[float, int]], share: float) -> int:
    """A quantile, on straight lines between those that are known."""
    for (low, left), (high, right) in pairwise(points):
        if share <= high:
            return round(left + (right - left) * (share - low) / (high - low))
    return points[-1][1]
