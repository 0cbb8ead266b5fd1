"""Rendered rows against the sequence length, and how often weighted rows are seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from luthier.data.splits import choose_digests
from luthier.errors import DataError
from luthier.schema.protocols import ChatRow, TokenRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

OVER_LENGTH = "longer than the sequence length"
NOTHING_LEFT = "no trained token left after truncation"
NOT_CHOSEN = "not chosen by max_rows"
UNWEIGHTED = "left out by its source's weight"

NO_END = (
    "no end token of the tokenizer is trained in the first rows: check eos_token_id in "
    "generation_config.json against the chat template's end marker"
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Fitted:
    """What is left of a row under the sequence length."""

    pieces: list[TokenRow]
    dropped: str | None = None
    truncated: bool = False


def fit(chat: ChatRow, row: TokenRow, limit: int | None, over_length: str) -> Fitted:
    """Cut, drop or keep a row by the recipe's rule; plain texts are always cut into pieces."""
    found = pieces(row, limit)
    if len(found) == 1 or is_text(chat):
        return Fitted(found)
    if over_length != "truncate":
        return Fitted([], OVER_LENGTH)
    if not found[0].trained.any():
        return Fitted([], NOTHING_LEFT)
    return Fitted(found[:1], truncated=True)


def is_text(row: ChatRow) -> bool:
    """Whether a row is a plain text rather than a conversation."""
    return len(row.messages) == 1 and row.messages[0]["role"] == "text"


def pieces(row: TokenRow, limit: int | None) -> list[TokenRow]:
    """The row in pieces of at most ``limit`` tokens."""
    if limit is None or len(row.ids) <= limit:
        return [row]
    return [
        replace(row, ids=row.ids[start : start + limit], trained=row.trained[start : start + limit])
        for start in range(0, len(row.ids), limit)
    ]


def uncut_sizes(chat: ChatRow, row: TokenRow, limit: int | None) -> list[int]:
    """Tokens before any cut; plain texts count in the pieces that they are always cut into."""
    return [len(piece.ids) for piece in pieces(row, limit)] if is_text(chat) else [len(row.ids)]


@dataclass(frozen=True, slots=True)
class Longest:
    """The longest row, for the words of an error."""

    tokens: int
    file: str
    line: int


def over_length_error(
    count: int, rows: int, longest: Longest, limit: int | None, most: int | None
) -> DataError:
    """Rows are too long. most: what the model itself reads, in tokens."""
    limit = limit or 0
    ways = "data.over_length: truncate (cuts their ends) or drop"
    if most is None or longest.tokens <= most:
        ways = f"set training.sequence_length={longest.tokens}, or {ways}"
    else:
        ways = f"set {ways}; the model itself reads {most:,} tokens"
    return DataError(
        f"{count} of {rows} rows are longer than {limit:,} tokens; the longest has {longest.tokens:,}",
        file=longest.file,
        line=longest.line,
        hint=ways,
    )


def times_seen(
    files: Sequence[str], ids: Sequence[str], weights: dict[str, float], *, seed: int
) -> list[int]:
    """How often each row is seen in an epoch, by the weight of its file (1 where it has none).

    A weight of 2.5 gives every row twice and half of them, chosen by seed and content, once more.
    """
    names = list(dict.fromkeys(files))
    numbers = {name: number for number, name in enumerate(names)}
    digests = np.array([bytes.fromhex(one) for one in ids], dtype="S12")
    own = {numbers[file]: weight for file, weight in weights.items() if file in numbers}
    times: list[int] = times_of(
        np.array([numbers[name] for name in files], dtype=np.int32), digests, own, seed=seed
    ).tolist()
    return times


def times_of(
    files: NDArray[np.int32], ids: NDArray[Any], weights: dict[int, float], *, seed: int
) -> NDArray[np.int32]:
    """As ``times_seen``, for files by number and digests of 12 bytes (numpy's S12)."""
    times = np.ones(len(files), dtype=np.int32)
    for file, weight in weights.items():
        places = np.flatnonzero(files == file)
        whole = int(weight)
        chosen = choose_digests(ids[places], round((weight - whole) * len(places)), seed=seed)
        times[places] = whole
        times[places[chosen]] += 1
    return times


def repeated(rows: Sequence[T], times: Sequence[int]) -> list[T]:
    """All rows seen at least once, in order, then those seen at least twice, and so on."""
    again = range(max(times, default=0))
    return [row for turn in again for row, count in zip(rows, times, strict=True) if count > turn]


def weighed(weights: dict[str, float]) -> list[str]:
    """What weights add to a data set's digest."""
    return [f"{Path(file).name} x {weight}" for file, weight in weights.items()]
