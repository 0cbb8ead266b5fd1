"""The first pass over large files: short digests of each row, and with them the split that it belongs to.

What is kept of a row lies on disk; in memory there is one byte a row, and while splits are cut some 40.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from luthier.data.chunks import Chunk
from luthier.data.fit import NOT_CHOSEN, UNWEIGHTED, times_of
from luthier.data.passes import LEFT_OUT, Problems, Reading, Scanned, pieces_of, shapes_of
from luthier.data.pool import ordered, processes
from luthier.data.sources import Resolved, Source
from luthier.data.spill import Spilled
from luthier.data.splits import allot, choose_digests
from luthier.errors import DataError
from luthier.schema.recipe import Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIECE_BYTES = 4 << 20
"""Files of fewer bytes start no more than one process."""
TRAIN = 0
"""Number of the split ``train``; that of ``validation`` is 1, and those of tests follow."""


@dataclass(frozen=True)
class Sources:
    """The files of a recipe, resolved."""

    train: Resolved
    given: dict[str, Resolved]
    """Split -> the files named for it."""
    weights: dict[str, float]


class Index:
    """All rows of some files after the first pass, in order. Columns lie on disk until they are asked for."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        """Rows of each piece."""
        self.places: NDArray[np.uint8] = np.zeros(0, dtype=np.uint8)
        """Number of each row's split, or LEFT_OUT."""
        self._files: list[int] = []
        self._columns = {
            "ids": Spilled("S12"),
            "prompts": Spilled(np.uint64),
            "by_prompt": Spilled(np.uint64),
            "by_id": Spilled(np.uint64),
            "lines": Spilled(np.int64),
        }

    def __len__(self) -> int:
        return len(self._columns["ids"])

    def add(self, found: Scanned, *, file: int) -> None:
        """The rows of a piece. file: number of its file."""
        self.counts.append(len(found.prompts))
        self._files.append(file)
        for name, column in self._columns.items():
            column.add(getattr(found, name))

    def column(self, name: Literal["ids", "prompts", "by_prompt", "by_id", "lines"]) -> NDArray[Any]:
        """One value of each row, as ``passes.Scanned`` has it: read anew at each call."""
        return self._columns[name].read()

    def files(self) -> NDArray[np.int32]:
        """Number of each row's file."""
        return np.repeat(np.array(self._files, dtype=np.int32), self.counts)


@dataclass
class Split:
    """One split while it is made."""

    name: str
    number: int
    files: tuple[Source, ...]
    cut: bool
    index: Index
    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    times: NDArray[np.int32] | None = None
    """How often each row of the index is seen, where weights say so."""
    weights: dict[str, float] = field(default_factory=dict)

    def rows(self) -> NDArray[np.int64]:
        """Its rows, by number within the index."""
        return np.flatnonzero(self.index.places == self.number)


def readings(recipe: Recipe, sources: Sources, *, plain: bool = False) -> tuple[Reading, dict[str, Reading]]:
    """How the training files are read, and those of each split that has its own."""
    data = recipe.data
    train = Reading(shapes_of(sources.train.files, data), data.system, recipe.seed, plain)
    given = {
        name: Reading(shapes_of(part.files, data), data.system, recipe.seed, plain)
        for name, part in sources.given.items()
    }
    return train, given


def source_bytes(files: Iterable[Source]) -> int:
    """Bytes of files, compressed ones counted four times over."""
    return sum(file.path.stat().st_size * (4 if _is_packed(file) else 1) for file in files)


def _is_packed(file: Source) -> bool:
    return file.compression is not None or file.kind == "parquet"


class Scanner:
    """The first pass over a recipe's files: every row into its split."""

    def __init__(self, recipe: Recipe, sources: Sources, train: Reading, given: dict[str, Reading]) -> None:
        self.recipe, self.sources, self.train, self.given = recipe, sources, train, given
        self.count = min(recipe.data.processes or processes(), 1 + source_bytes(self._files()) // PIECE_BYTES)

    def _files(self) -> list[Source]:
        return [f for part in (self.sources.train, *self.sources.given.values()) for f in part.files]

    def splits(self) -> list[Split]:
        """All splits, train first. Raises one DataError for all rows that cannot be read."""
        data = self.recipe.data
        files = self.sources.train.files
        index = self._scan(files, self.train)
        shares = {} if data.test else {"test": data.test_share}
        if not data.validation:
            shares["validation"] = data.validation_share
        wanted = ["train", *(name for name, share in shares.items() if share > 0)]
        names = ["train", "validation", *(n for n in (*wanted[1:], *data.test) if n != "validation")]
        number = {name: place for place, name in enumerate(names)}
        parts = _cut(index, shares, file=files[0].shown)
        index.places = np.array([number[name] for name in wanted], dtype=np.uint8)[parts]
        splits = [Split(name, number[name], files, name != "train", index) for name in wanted]
        for name, reading in self.given.items():
            own = self.sources.given[name].files
            found = self._scan(own, reading)
            found.places = np.full(len(found), number[name], dtype=np.uint8)
            splits.append(Split(name, number[name], own, cut=False, index=found))
        for split in splits:
            split.read = int(np.count_nonzero(split.index.places == split.number))
        self._choose(splits[0])
        return splits

    def _choose(self, train: Split) -> None:
        """max_rows and weights."""
        most, seed = self.recipe.data.max_rows, self.recipe.seed
        if most is not None and most < train.read:
            rows = train.rows()
            chosen = choose_digests(train.index.column("ids")[rows], most, seed=seed)
            train.dropped[NOT_CHOSEN] = len(rows) - most
            train.index.places[rows] = LEFT_OUT
            train.index.places[rows[chosen]] = train.number
        if self.sources.weights:
            train.weights = self.sources.weights
            numbers = {file.shown: number for number, file in enumerate(train.files)}
            weights = {numbers[name]: weight for name, weight in train.weights.items()}
            rows = train.rows()
            times = times_of(train.index.files()[rows], train.index.column("ids")[rows], weights, seed=seed)
            if (times == 0).any():
                train.dropped[UNWEIGHTED] = int((times == 0).sum())
            train.times = np.zeros(len(train.index), dtype=np.int32)
            train.times[rows] = times
            train.index.places[rows[times == 0]] = LEFT_OUT

    def _scan(self, files: tuple[Source, ...], reading: Reading) -> Index:
        problems, index = Problems(), Index()
        numbers = {file.shown: number for number, file in enumerate(files)}
        sent: deque[int] = deque()

        def pieces() -> Iterator[Chunk]:
            for chunk in pieces_of(files, problems):
                sent.append(numbers[chunk.file])
                yield chunk

        for one in ordered("luthier.data.passes:scan_job", reading, pieces(), count=self.count):
            problems.add(one.problems, one.broken)
            index.add(one, file=sent.popleft())
        problems.demand_none()
        if not len(index):
            raise DataError(
                "the data set is empty: no row was read",
                file=files[0].shown,
                hint="give a file with at least a few rows",
            )
        return index


def _cut(index: Index, shares: dict[str, float], *, file: str) -> NDArray[np.uint8]:
    """Split number of each row: 0 train, then the shares above 0 in their order. As ``splits.cut``."""
    by_prompt = _different(index.column("prompts")) * 2 >= len(index)
    ranks = index.column("by_prompt" if by_prompt else "by_id")
    order = np.argsort(ranks)
    ranks = ranks[order]
    starts = np.flatnonzero(np.concatenate([[True], ranks[1:] != ranks[:-1]]))
    del ranks
    sizes = np.diff(starts, append=len(index))
    del starts
    parts = np.empty(len(index), dtype=np.uint8)
    parts[order] = np.repeat(allot(sizes, shares, rows=len(index), file=file), sizes)
    return parts


def _different(values: NDArray[Any]) -> int:
    """How many different values there are. Sorts them in place."""
    values.sort()
    return int(np.count_nonzero(values[1:] != values[:-1])) + (len(values) > 0)


def leakage(splits: list[Split]) -> tuple[dict[str, int], dict[str, int]]:
    """Held-out rows whose content, and whose prompt only, stands in train (before any row is dropped)."""
    train, held = splits[0].index, splits[1:]
    mask = (train.places == TRAIN) | (train.places == LEFT_OUT)
    same: dict[str, NDArray[np.bool_]] = {}
    asked: dict[str, int] = {}
    for name in ("ids", "prompts"):
        known = _numbers(train.column(name))[mask]
        known.sort()
        for split in held:
            found = _among(_numbers(split.index.column(name))[split.rows()], known)
            if name == "ids":
                same[split.name] = found
            else:
                asked[split.name] = int(np.count_nonzero(found & ~same[split.name]))
    return {name: int(np.count_nonzero(found)) for name, found in same.items()}, asked


def _among(values: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether each value is among the known ones, which are sorted."""
    if not len(known):
        return np.zeros(len(values), dtype=np.bool_)
    at = np.minimum(np.searchsorted(known, values), len(known) - 1)
    found: NDArray[np.bool_] = known[at] == values
    return found


def _numbers(column: NDArray[Any]) -> NDArray[np.uint64]:
    """Digests as numbers of 64 bits: the first 8 of 12 bytes."""
    if column.dtype == np.uint64:
        return column
    flat = column.view(np.uint8).reshape(-1, column.dtype.itemsize)
    return np.ascontiguousarray(flat[:, :8]).view(np.uint64).ravel()
