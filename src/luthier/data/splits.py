"""Seeded, duplicate-safe, group-aware splits: equal rows, and equal prompts, never land on both sides."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from luthier.data.messages import content_digest
from luthier.errors import DataError
from luthier.schema.protocols import ChatRow


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
    return content_digest([message for message in row.messages[:last] if message["role"] != "system"])


def cut(
    rows: Sequence[R], shares: dict[str, float], *, seed: int, key: Callable[[Any], str] = prompt_key
) -> dict[str, list[R]]:
    """Part rows into ``train`` and the named shares, each in the order given.

    Rows of one group (or, without groups, of one key: one prompt) stay together. Which groups go where
    depends on seed and content only, not on the order of the file. Raises DataError where rows are too few.
    """
    wanted = {name: max(1, round(share * len(rows))) for name, share in shares.items() if share > 0}
    keys = _keys(rows, key)
    sizes = Counter(keys)
    if wanted and len(sizes) < len(wanted) + 1:
        raise DataError(
            f"{len(rows)} rows ({len(sizes)} different) are too few to hold some back for "
            f"{' and '.join(wanted)}",
            file=rows[0].file if rows else None,
            hint="give more rows, name files under data.validation and data.test, or set "
            "data.validation_share and data.test_share to 0",
        )
    queue = sorted(sizes, key=lambda key: hashlib.sha256(f"{seed}/{key}".encode()).digest())
    place: dict[str, str] = {}
    for number, (name, count) in enumerate(wanted.items(), 1):
        free = [key for key in queue if key not in place]
        spare = len(free) - (len(wanted) - number) - 1  # one group for train and each later split
        chosen: list[str] = []
        taken = 0
        for one in free:
            if len(chosen) < spare and taken + sizes[one] <= count:
                chosen.append(one)
                taken += sizes[one]
        for one in chosen or [min(free, key=lambda held: sizes[held])]:
            place[one] = name
    parts: dict[str, list[R]] = {"train": [], **{name: [] for name in wanted}}
    for row, one in zip(rows, keys, strict=True):
        parts[place.get(one, "train")].append(row)
    return parts


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
    seen: Counter[str] = Counter()
    ranked = []
    for index, row in enumerate(rows):
        seen[row.id] += 1
        rank = hashlib.sha256(f"{seed}/choose/{row.id}/{seen[row.id]}".encode()).digest()
        ranked.append((rank, index))
    return [rows[index] for index in sorted(index for _, index in sorted(ranked)[:count])]
