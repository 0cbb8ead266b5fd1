"""Order, packing and batches of one epoch: a pure function of lengths, seed and epoch.

The plan names rows by index and knows nothing of devices: every world size works through the same
steps, so a resumed run, or one on more devices, sees the same rows together.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")
Packed = tuple[int, ...]
"""Rows that share one sequence, in order; a single one without packing."""
MicroBatch = tuple[Packed, ...]
"""Sequences that go through the model at once."""
Step = tuple[MicroBatch, ...]
"""All sequences of one optimiser step."""

FIRST_STEPS = 2
"""So many of the largest steps open a run: the first makes the optimiser's states, the second has them
beside it, so that the height of memory is known before anything is lost."""
_GROUPED_STEPS = 50
"""Without packing, rows are sorted by length within this many steps' worth of shuffled rows."""


def plan_epoch(
    lengths: Sequence[int],
    *,
    batch_size: int,
    micro_batch_size: int,
    sequence_length: int,
    packing: bool,
    seed: int,
    epoch: int,
    grouped: bool = True,
) -> list[Step]:
    """Plan one epoch: every row exactly once, the last, smaller step kept.

    lengths: tokens of each row, at most sequence_length. batch_size: sequences a step;
    micro_batch_size: sequences at once. Deterministic in (seed, epoch). The first epoch opens with its
    largest steps, the others are in the order drawn.

    grouped: whether rows of like length share a step. Where a row's length says something of its label
    that makes batches of few labels, which learn less: such rows are drawn, and sorted within the step.
    """
    longest = max(lengths, default=0)
    assert longest <= sequence_length, f"a row of {longest} tokens does not fit {sequence_length}"
    assert batch_size >= 1
    assert micro_batch_size >= 1
    # Seeded by a text: `random` hashes it with SHA-512, the same on every platform and version.
    order = random.Random(f"luthier epoch {seed}/{epoch}")
    rows = list(range(len(lengths)))
    order.shuffle(rows)
    if packing:
        sequences = pack(rows, lengths, sequence_length)
        order.shuffle(sequences)
        steps = _chunks(sequences, batch_size)
    elif grouped:
        steps = _grouped(rows, lengths, batch_size, order)
    else:
        drawn = _chunks(rows, batch_size)
        steps = [[(row,) for row in sorted(step, key=lambda index: -lengths[index])] for step in drawn]
    plan = [tuple(tuple(part) for part in _chunks(step, micro_batch_size)) for step in steps]
    return largest_first(plan, lengths) if epoch == 0 else plan


def largest_first(plan: Sequence[Step], lengths: Sequence[int]) -> list[Step]:
    """The whole steps with the largest micro-batches in front, the rest in their order.

    Largest: most tokens, then the longest sequence, then the earliest. A last step that is not whole
    stays last.
    """

    def size(place: int) -> tuple[int, int]:
        held = [[sum(lengths[row] for row in packed) for packed in micro] for micro in plan[place]]
        return max(map(sum, held)), max(map(max, held))

    rows = [sum(map(len, step)) for step in plan]
    whole = [place for place, count in enumerate(rows) if count == rows[0]]
    first = sorted(whole, key=lambda place: (*(-part for part in size(place)), place))[:FIRST_STEPS]
    return [*(plan[place] for place in first), *(s for place, s in enumerate(plan) if place not in first)]


def pack(rows: Sequence[int], lengths: Sequence[int], capacity: int) -> list[Packed]:
    """Best-fit decreasing: longest rows first, each into the fullest sequence that still has room.

    Rows of equal length stay in the order given. Works in about one big-integer operation a row:
    bit n of a mask says whether a sequence with n free tokens is open.
    """
    open_by_room: dict[int, list[int]] = {}
    mask = 0
    sequences: list[list[int]] = []
    for row in sorted(rows, key=lambda index: -lengths[index]):
        need = lengths[row]
        fitting = mask >> need
        if fitting:
            room = need + (fitting & -fitting).bit_length() - 1
            target = open_by_room[room].pop()
            if not open_by_room[room]:
                mask &= ~(1 << room)
            sequences[target].append(row)
        else:
            room, target = capacity, len(sequences)
            sequences.append([row])
        left = room - need
        open_by_room.setdefault(left, []).append(target)
        mask |= 1 << left
    return [tuple(sequence) for sequence in sequences]


def _grouped(
    rows: Sequence[int], lengths: Sequence[int], batch_size: int, order: random.Random
) -> list[list[Packed]]:
    """Steps of rows of like length, so little is padded; the order of steps is shuffled again."""
    steps: list[list[Packed]] = []
    for group in _chunks(list(rows), batch_size * _GROUPED_STEPS):
        by_length = sorted(group, key=lambda index: -lengths[index])
        steps += _chunks([(index,) for index in by_length], batch_size)
    partial = [steps.pop()] if steps and len(steps[-1]) < batch_size else []
    order.shuffle(steps)
    return steps + partial


def _chunks(items: list[_T], size: int) -> list[list[_T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def fill(plan: Sequence[Step], lengths: Sequence[int], sequence_length: int) -> float:
    """Share of the slots that hold a token, each sequence counted as sequence_length slots."""
    sequences = [packed for step in plan for micro in step for packed in micro]
    used = sum(lengths[row] for packed in sequences for row in packed)
    return used / (len(sequences) * sequence_length) if sequences else 0.0
