"""Quantiles and digests of lists of rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from math import ceil

from luthier.schema.data import Lengths


def lengths(values: Sequence[int]) -> Lengths:
    """Nearest-rank quantiles; all zero for an empty list."""
    ordered = sorted(values)

    def at(share: float) -> int:
        return ordered[max(0, ceil(share * len(ordered)) - 1)] if ordered else 0

    return Lengths(
        count=len(ordered),
        total=sum(ordered),
        minimum=ordered[0] if ordered else 0,
        median=at(0.5),
        p90=at(0.9),
        p95=at(0.95),
        p99=at(0.99),
        maximum=ordered[-1] if ordered else 0,
    )


def digest(parts: Iterable[str]) -> str:
    """SHA-256 over texts, each ended by a zero byte."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return total.hexdigest()
