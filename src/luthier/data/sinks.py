"""Rendered rows of one split on their way to disk, and the account of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.data.fit import Longest
from luthier.data.passes import Index, Part
from luthier.data.sources import Source
from luthier.data.stats import lengths
from luthier.data.store import arrow
from luthier.errors import DataError
from luthier.schema.data import SplitReport
from luthier.schema.protocols import TextTokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

_END_ROWS = 100
_SMALL_VOCABULARY = 1 << 16


@dataclass
class Split:
    """One split while it is made."""

    name: str
    number: int
    files: tuple[Source, ...]
    cut: bool
    read: int = 0
    index: Index | None = None
    rows: NDArray[np.int64] | None = None
    """Its rows by number within the index, and ..."""
    dropped: Counter[str] = field(default_factory=Counter)
    times: NDArray[np.int64] | None = None
    """... how often each row of the index is seen, where weights say so."""
    weights: dict[str, float] = field(default_factory=dict)


class Sink:
    """Rendered rows of one split on their way to disk, and the account of them."""

    def __init__(self, split: Split, folder: Path, tokenizer: TextTokenizer, *, stream: bool) -> None:
        self.split, self.folder, self.stream = split, folder, stream
        self.test = split.number > 1
        small = getattr(tokenizer, "vocab_size", _SMALL_VOCABULARY + 1) <= _SMALL_VOCABULARY
        self.dtype: Any = np.uint16 if small else np.int32
        self.dropped = Counter(split.dropped)
        self.truncated = self.over = self.rows = 0
        self.longest: Longest | None = None
        self.asked: list[tuple[int, int]] = []
        self.ends: list[NDArray[np.int32]] = []
        """Trained ids of the first rows."""
        self._arrays: dict[str, list[NDArray[Any]]] = {}
        self._digest = hashlib.sha256()
        self._writer: Any = None
        self._trained = 0

    def _keep(self, **arrays: Any) -> None:
        for name, values in arrays.items():
            self._arrays.setdefault(name, []).append(np.asarray(values))

    def array(self, name: str) -> NDArray[Any]:
        """All values of one kind."""
        found = self._arrays.get(name)
        return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)

    def add(self, part: Part, *, file: int, begin: int, lines: NDArray[np.int64] | None, first: int) -> None:
        """One piece's rows. begin: number of the piece's first row among all."""
        if self.test:
            return self._add_tests(part, file, lines, first)
        self.rows += len(part.all_rows)
        self._keep(
            uncut=np.array(part.uncut, dtype=np.int32),
            uncut_rows=np.array(part.uncut_rows, dtype=np.int64) + begin,
            trained_uncut=np.array(part.trained_uncut, dtype=np.int32),
            all_rows=np.array(part.all_rows, dtype=np.int64) + begin,
            kept_rows=np.array(part.kept_rows, dtype=np.int64) + begin,
            rows=np.array(part.rows, dtype=np.int64) + begin,
            sizes=np.array([len(ids) for ids in part.ids], dtype=np.int32),
        )
        self.dropped.update(part.dropped)
        self.truncated += part.truncated
        self.over += part.over
        if part.longest and (self.longest is None or part.longest.tokens > self.longest.tokens):
            self.longest = part.longest
        for ids, trained in zip(part.ids, part.trained, strict=True):
            self._digest.update(len(ids).to_bytes(8, "little") + ids.tobytes() + trained.tobytes())
            self._trained += int(trained.sum())
            if len(self.ends) < _END_ROWS:
                self.ends.append(ids[trained])
        if self.stream:
            sizes = [len(ids) for ids in part.ids]
            self._places(part.lines, part.piece, sizes, file=file, lines=lines, first=first)
        elif part.ids:
            self._write_rows(part, file)
        return None

    def _places(
        self,
        numbers: list[int],
        pieces: list[int],
        sizes: list[int],
        *,
        file: int,
        lines: NDArray[np.int64] | None,
        first: int,
    ) -> None:
        assert lines is not None
        line = np.array(numbers, dtype=np.int64)
        self._keep(
            line=line,
            offset=lines[line - first],
            source=np.full(len(line), file, dtype=np.int32),
            piece=np.array(pieces, dtype=np.int32),
            length=np.array(sizes, dtype=np.int32),
        )

    def _add_tests(self, part: Part, file: int, lines: NDArray[np.int64] | None, first: int) -> None:
        self.rows += len(part.chats)
        self.asked += part.asked
        if self.stream:
            numbers = [line for _, line, _, _ in part.chats]
            none = [0] * len(numbers)
            self._places(numbers, none, none, file=file, lines=lines, first=first)
            return
        pa = arrow()
        columns = {
            "row": pa.array([text for text, _, _, _ in part.chats], pa.large_string()),
            "file": pa.array([file] * len(part.chats), pa.int32()),
            "line": pa.array([line for _, line, _, _ in part.chats], pa.int64()),
            "id": pa.array([bytes.fromhex(one) for _, _, one, _ in part.chats], pa.binary(12)),
            "group": pa.array([group for _, _, _, group in part.chats], pa.string()),
        }
        self._write(pa.record_batch(columns))

    def _write_rows(self, part: Part, file: int) -> None:
        pa = arrow()
        offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in part.ids])]).astype(np.int32)
        bounds = pa.array(offsets, pa.int32())
        count = len(part.ids)
        columns = {
            "ids": pa.ListArray.from_arrays(bounds, pa.array(np.concatenate(part.ids).astype(self.dtype))),
            "trained": pa.ListArray.from_arrays(bounds, pa.array(np.concatenate(part.trained))),
            "file": pa.array(np.full(count, file, dtype=np.int32)),
            "line": pa.array(np.array(part.lines, dtype=np.int64)),
            "id": pa.array([bytes.fromhex(one) for one in part.digests], pa.binary(12)),
        }
        self._write(pa.record_batch(columns))

    def _write(self, batch: Any) -> None:
        if self._writer is None:
            path = str(self.folder / f"{self.split.number}.arrow")
            self._writer = arrow().ipc.new_file(path, batch.schema)
        self._writer.write_batch(batch)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()
        if self.stream:
            names = ("line", "offset", "source", "piece", "length")
            places: dict[str, Any] = {name: self.array(name) for name in names}
            with (self.folder / f"{self.split.number}.npz").open("wb") as file:
                np.savez(file, **places)

    def report(self) -> SplitReport:
        """The account of the split. Raises DataError where no row is left."""
        split = self.split
        assert split.index is not None
        assert split.rows is not None
        kept = split.rows if self.test else self.array("kept_rows")
        if not len(kept):
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
            raise DataError(
                f"no row is left in the split {split.name!r}: {reasons or 'it has none'}",
                file=split.files[0].shown,
                hint="raise training.sequence_length, or give shorter rows",
            )
        ids = np.sort(split.index.ids[kept].view("S12"))
        different = 1 + int((ids[1:] != ids[:-1]).sum())
        return SplitReport(
            name=split.name,
            files=tuple(file.shown for file in split.files),
            cut_from_train=split.cut,
            read=split.read,
            kept=len(kept),
            dropped=dict(self.dropped),
            truncated=self.truncated,
            duplicates=len(kept) - different,
            tokens=None if self.test else lengths(self.array("sizes")),
            trained_tokens=self._trained,
            digest=_sorted_digest(ids),
            weights=split.weights,
            copies=0 if split.times is None else int((split.times[kept] - 1).sum()),
        )

    def token_digest(self) -> str:
        """Digest of the rendered rows, as ``load`` makes it."""
        return self._digest.hexdigest()

    def _times(self, name: str) -> NDArray[np.int64]:
        rows = self.array(name)
        return np.ones(len(rows), dtype=np.int64) if self.split.times is None else self.split.times[rows]

    def uncut_sizes(self) -> NDArray[np.int64]:
        """Tokens of all rows before any cut, as often as they are seen."""
        return np.repeat(self.array("uncut"), self._times("uncut_rows"))

    def trained_tokens(self) -> int:
        """Trained tokens before any cut, as often as they are seen."""
        return int((self.array("trained_uncut").astype(np.int64) * self._times("all_rows")).sum())

    def order(self) -> NDArray[np.int64]:
        """Stored rows as often as they are seen: all once, then those seen again, and so on."""
        times = self._times("rows")
        turns = range(int(times.max(initial=0)))
        return np.concatenate([np.flatnonzero(times > turn) for turn in turns] or [np.zeros(0, np.int64)])


def _sorted_digest(ids: NDArray[Any]) -> str:
    """As ``stats.digest`` of the sorted digests in hexadecimal."""
    total = hashlib.sha256()
    for start in range(0, len(ids), 1 << 16):
        block = ids[start : start + (1 << 16)]
        text = block.tobytes().hex()
        total.update("".join(text[at : at + 24] + "\0" for at in range(0, len(text), 24)).encode())
    return total.hexdigest()
