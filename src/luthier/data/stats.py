"""Quantiles and digests of lists of rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
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


def digest(parts: Iterable[str]) -> str:
    """SHA-256 over texts, each ended by a zero byte."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return total.hexdigest()
