"""Quantiles and digests of lists of rows."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.schema.data import Lengths

if TYPE_CHECKING:
    from numpy.typing import NDArray


def lengths(values: Sequence[int] | NDArray[np.integer[Any]]) -> Lengths:
    """Nearest-rank quantiles; all zero for an empty list."""
    ordered = np.sort(np.asarray(values, dtype=np.int64))

    def at(share: float) -> int:
        return int(ordered[max(0, ceil(share * len(ordered)) - 1)]) if len(ordered) else 0

    return Lengths(
        count=len(ordered),
        total=int(ordered.sum()),
        minimum=at(0.0),
        median=at(0.5),
        p90=at(0.9),
        p95=at(0.95),
        p99=at(0.99),
        maximum=at(1.0),
    )


def lengths_of(counts: Mapping[int, int]) -> Lengths:
    """The same for values that are counted already: value -> how often."""
    values = sorted(counts)
    ends = np.cumsum([counts[value] for value in values]) if values else np.zeros(0, np.int64)
    rows = int(ends[-1]) if values else 0

    def at(share: float) -> int:
        return values[int(np.searchsorted(ends, max(1, ceil(share * rows))))] if values else 0

    return Lengths(
        count=rows,
        total=sum(value * count for value, count in counts.items()),
        minimum=at(0.0),
        median=at(0.5),
        p90=at(0.9),
        p95=at(0.95),
        p99=at(0.99),
        maximum=at(1.0),
    )


def tally(
    counts: Counter[int], values: NDArray[np.integer[Any]], times: NDArray[np.integer[Any]] | None = None
) -> None:
    """Count values for ``lengths_of``. times: how often each of them counts."""
    found, at = np.unique(values, return_inverse=True)
    counts.update(dict(zip(found.tolist(), np.bincount(at, times).astype(np.int64).tolist(), strict=True)))


def copy_numbers(ids: NDArray[Any]) -> NDArray[np.int64]:
    """For each value how many equal ones stand before it."""
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    places = np.arange(len(ids))
    starts = np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ids)]
    copies = np.empty(len(ids), dtype=np.int64)
    copies[order] = places - np.maximum.accumulate(np.where(starts, places, 0))
    return copies


def digest(parts: Iterable[str]) -> str:
    """SHA-256 over texts, each ended by a zero byte."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return total.hexdigest()
