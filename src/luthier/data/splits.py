"""Seeded, duplicate-safe, group-aware splits: equal rows, and equal prompts, never land on both sides."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from luthier.data.messages import row_id
from luthier.data.stats import copy_numbers
from luthier.errors import DataError
from luthier.schema.protocols import ChatRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK = 1 << 14


class Row(Protocol):
    """What rows of all purposes have."""

    @property
    def id(self) -> str: ...
    @property
    def group(self) -> str | None: ...
    @property
    def file(self) -> str: ...


R = TypeVar("R", bound=Row)


def prompt_key(row: ChatRow) -> str:
    """Digest of what stands before the last answer (a text: its beginning), the system prompt left out."""
    if row.messages[0]["role"] == "text":
        return row.id
    last = max((i for i, m in enumerate(row.messages) if m["role"] == "assistant"), default=len(row.messages))
    return row_id([message for message in row.messages[:last] if message["role"] != "system"], None)


def cut(
    rows: Sequence[R], shares: dict[str, float], *, seed: int, key: Callable[[Any], str] = prompt_key
) -> dict[str, list[R]]:
    """Part rows into ``train`` and the named shares, each in the order given.

    Rows of one group (or, without groups, of one key: one prompt) stay together. Which groups go where
    depends on seed and content only, not on the order of the file. Raises DataError where rows are too few.
    """
    keys = _keys(rows, key)
    sizes = Counter(keys)
    queue = sorted(sizes, key=lambda key: rank(key, seed=seed))
    file = rows[0].file if rows else None
    numbers = allot([sizes[one] for one in queue], shares, rows=len(rows), file=file)
    place = dict(zip(queue, numbers.tolist(), strict=True))
    parts: list[list[R]] = [[], *([] for share in shares.values() if share > 0)]
    for row, one in zip(rows, keys, strict=True):
        parts[place[one]].append(row)
    names = ["train", *(name for name, share in shares.items() if share > 0)]
    return dict(zip(names, parts, strict=True))


def rank(key: str, *, seed: int) -> int:
    """Where a group of rows stands in the queue for the held-out splits: by seed and content alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:8])


def allot(
    sizes: Sequence[int] | NDArray[np.int64],
    shares: dict[str, float],
    *,
    rows: int,
    file: str | None = None,
) -> NDArray[np.uint8]:
    """Where each group of the queue goes: 0 is train, then the shares above 0 in their order.

    sizes: rows of each group. Raises DataError where there are too few groups.
    """
    wanted = {name: max(1, round(share * rows)) for name, share in shares.items() if share > 0}
    if wanted and len(sizes) < len(wanted) + 1:
        raise DataError(
            f"{rows} rows ({len(sizes)} different) are too few to hold some back for {' and '.join(wanted)}",
            file=file,
            hint="give more rows, name files under data.validation and data.test, or set "
            "data.validation_share and data.test_share to 0",
        )
    place = np.zeros(len(sizes), dtype=np.uint8)
    for number, count in enumerate(wanted.values(), 1):
        # One group is spared for train and each later split.
        spare = int(np.count_nonzero(place == 0)) - (len(wanted) - number) - 1
        chosen = taken = 0
        for one in range(len(sizes)):
            if not place[one] and chosen < spare and taken + sizes[one] <= count:
                place[one] = number
                chosen, taken = chosen + 1, taken + int(sizes[one])
                if taken == count:
                    break
        if not chosen:
            place[min(np.flatnonzero(place == 0).tolist(), key=lambda held: sizes[held])] = number
    return place


def _keys(rows: Sequence[Row], key: Callable[[Any], str]) -> list[str]:
    """What holds rows together. Where most rows share their prompt, prompts cannot: then equal rows do."""
    prompts = [key(row) for row in rows]
    if len(set(prompts)) * 2 < len(rows):
        prompts = [row.id for row in rows]
    return [
        f"group {row.group}" if row.group is not None else own for row, own in zip(rows, prompts, strict=True)
    ]


def choose(rows: Sequence[R], count: int, *, seed: int) -> list[R]:
    """``count`` rows by seed and content, in the order given."""
    return [rows[place] for place in choose_places([row.id for row in rows], count, seed=seed)]


def choose_places(ids: Sequence[str], count: int, *, seed: int) -> list[int]:
    """Places of ``count`` rows by seed and content digest, in order; copies count one by one."""
    seen: Counter[str] = Counter()
    ranked = []
    for index, one in enumerate(ids):
        seen[one] += 1
        ranked.append((_draw(one, seen[one], seed), index))
    return sorted(index for _, index in sorted(ranked)[:count])


def choose_digests(ids: NDArray[Any], count: int, *, seed: int) -> NDArray[np.int64]:
    """As ``choose_places``, for millions of digests of 12 bytes each (numpy's S12): some 40 bytes a row."""
    copies = copy_numbers(ids)
    draws = np.empty(len(ids), dtype="S12")
    for start in range(0, len(ids), _BLOCK):
        block = slice(start, start + _BLOCK)
        text = ids[block].tobytes().hex()
        draws[block] = [
            _draw(text[24 * place : 24 * place + 24], copy + 1, seed)
            for place, copy in enumerate(copies[block].tolist())
        ]
    return np.sort(np.argsort(draws, kind="stable")[:count])


def _draw(one: str, copy: int, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/choose/{one}/{copy}".encode()).digest()[:12]
