"""Batches for in-batch negatives: no row's text is another row's false negative.

A contrastive loss takes the other rows of a batch as negatives. Where two rows share a query or a
positive, a right answer would be pushed away as a wrong one: such rows never meet in a batch.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

_GROUPED_BATCHES = 50
"""Rows are sorted by length within this many batches' worth of shuffled rows."""


@dataclass(slots=True)
class _Batch:
    rows: list[int] = field(default_factory=list)
    own: set[str] = field(default_factory=set)
    negatives: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Keys:
    """What a row's texts are compared by."""

    own: frozenset[str]
    negatives: frozenset[str]


def text_key(text: str) -> str:
    """What texts are compared by: white space and case do not tell them apart."""
    return " ".join(text.split()).casefold()


def plan_contrastive(
    own: Sequence[Sequence[str]],
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    negatives: Sequence[Sequence[str]] | None = None,
    lengths: Sequence[int] | None = None,
) -> list[tuple[int, ...]]:
    """Plan one epoch of batches: every row exactly once.

    own: for each row its query and positives. negatives: for each row its hard negatives; none of
    them is another row's query or positive in a batch. lengths: tokens a row, to put rows of like
    length together. Batches are full where that is possible: a text that stands in more rows than
    there are batches makes smaller ones. Deterministic in (seed, epoch), whatever the devices.
    """
    assert batch_size >= 1
    order = random.Random(f"luthier contrastive {seed}/{epoch}")
    keys = _keys(own, negatives)
    rows = list(range(len(own)))
    order.shuffle(rows)
    bound = _bound(keys)
    batches = [_Batch() for _ in range(-(-len(rows) // batch_size))]
    _place_bound(
        sorted((r for r in rows if r in bound), key=lambda r: -bound[r]), keys, batches, batch_size, order
    )
    free = [row for row in rows if row not in bound]
    if lengths is not None:
        free = _by_length(free, lengths, batch_size * _GROUPED_BATCHES)
    _fill(free, batches, batch_size)
    planned = [tuple(batch.rows) for batch in batches if batch.rows]
    order.shuffle(planned)
    # Smaller batches weigh their rows more: they come last, as in other plans.
    return sorted(planned, key=lambda batch: len(batch) < batch_size)


def plan_alike(labels: Sequence[str], *, batch_size: int, seed: int, epoch: int) -> list[tuple[int, ...]]:
    """Plan one epoch of batches in which texts meet others of their class and of other classes.

    Every row exactly once: rows of a class are drawn two by two (an odd one stands alone), and batches are
    filled with pairs in a drawn order. Deterministic in (seed, epoch).
    """
    assert batch_size >= 1
    order = random.Random(f"luthier alike {seed}/{epoch}")
    classes: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        classes.setdefault(label, []).append(row)
    pairs = []
    for rows in classes.values():
        order.shuffle(rows)
        pairs += [rows[start : start + 2] for start in range(0, len(rows), 2)]
    order.shuffle(pairs)
    # Lone rows last: before them no batch of an even size parts a pair.
    drawn = [row for pair in sorted(pairs, key=lambda pair: len(pair) < 2) for row in pair]
    batches = [tuple(drawn[start : start + batch_size]) for start in range(0, len(drawn), batch_size)]
    rest = [batches.pop()] if batches and len(batches[-1]) < batch_size else []
    order.shuffle(batches)
    return batches + rest


def _keys(own: Sequence[Sequence[str]], negatives: Sequence[Sequence[str]] | None) -> list[_Keys]:
    others: Iterable[Sequence[str]] = [()] * len(own) if negatives is None else negatives
    return [
        _Keys(frozenset(map(text_key, texts)), frozenset(map(text_key, hard)))
        for texts, hard in zip(own, others, strict=True)
    ]


def _bound(keys: Sequence[_Keys]) -> dict[int, int]:
    """Rows that cannot stand beside every other row -> how often their most frequent text stands."""
    counts: Counter[str] = Counter()
    hard: Counter[str] = Counter()
    for key in keys:
        counts.update(key.own)
        hard.update(key.negatives - key.own)
    bound: dict[int, int] = {}
    for row, key in enumerate(keys):
        most = max((counts[text] for text in key.own), default=0)
        clashes = any(text in hard for text in key.own) or any(
            counts[text] for text in key.negatives - key.own
        )
        if most > 1 or clashes:
            bound[row] = most
    return bound


def _place_bound(
    rows: Sequence[int], keys: Sequence[_Keys], batches: list[_Batch], size: int, order: random.Random
) -> None:
    """Each row into the next batch that takes it, rows of one text one batch after the other."""
    after: dict[str, int] = {}
    for row in rows:
        key = keys[row]
        known = [after[text] for text in key.own if text in after]
        start = max(known) if known else order.randrange(max(1, len(batches)))
        place = next(
            (
                (start + step) % len(batches)
                for step in range(len(batches))
                if _takes(batches[(start + step) % len(batches)], key, size)
            ),
            None,
        )
        if place is None:
            batches.append(_Batch())
            place = len(batches) - 1
        batch = batches[place]
        batch.rows.append(row)
        batch.own |= key.own
        batch.negatives |= key.negatives
        for text in key.own:
            after[text] = place + 1


def _takes(batch: _Batch, key: _Keys, size: int) -> bool:
    return (
        len(batch.rows) < size
        and batch.own.isdisjoint(key.own)
        and batch.own.isdisjoint(key.negatives)
        and batch.negatives.isdisjoint(key.own)
    )


def _fill(rows: Sequence[int], batches: list[_Batch], size: int) -> None:
    """Rows that can stand anywhere into the free places, batch after batch; full batches first."""
    place = 0
    for batch in sorted(batches, key=lambda batch: -len(batch.rows)):
        take = size - len(batch.rows)
        batch.rows.extend(rows[place : place + take])
        place += take
    assert place >= len(rows), "there is a place for every row"


def _by_length(rows: Sequence[int], lengths: Sequence[int], window: int) -> list[int]:
    return [
        row
        for start in range(0, len(rows), window)
        for row in sorted(rows[start : start + window], key=lambda row: -lengths[row])
    ]
