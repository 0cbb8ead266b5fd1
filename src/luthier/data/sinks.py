"""Rendered rows of one split on their way to disk, and the account of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.data.fit import Longest
from luthier.data.passes import LEFT_OUT, Part, Tests
from luthier.data.scan import Split
from luthier.data.spill import Spilled
from luthier.data.stats import lengths_of, tally
from luthier.data.store import arrow
from luthier.errors import DataError
from luthier.schema.data import SplitReport
from luthier.schema.protocols import TextTokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

_END_ROWS = 100
_SMALL_VOCABULARY = 1 << 16


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
        self.uncut: Counter[int] = Counter()
        """Tokens of rows before any cut, as often as they are seen -> how often."""
        self.trained_uncut = 0
        """Trained tokens before any cut, as often as they are seen."""
        self.prompts: Counter[int] = Counter()
        self.answers: Counter[int] = Counter()
        self.ends: list[NDArray[np.int32]] = []
        """Trained ids of the first rows."""
        self._sizes: Counter[int] = Counter()
        self._times: list[NDArray[np.int32]] = []
        self._spilled: dict[str, Spilled] = {}
        self._digest = hashlib.sha256()
        self._writer: Any = None
        self._trained = 0

    def add(self, part: Part, *, file: int, begin: int, lines: NDArray[np.int64] | None, first: int) -> None:
        """One piece's rows. begin: number of the piece's first row among all."""
        self.rows += len(part.all_rows)
        times = self.split.times
        if times is None:
            tally(self.uncut, part.uncut)
            self.trained_uncut += int(part.trained_uncut.sum(dtype=np.int64))
        else:
            tally(self.uncut, part.uncut, times[begin + part.uncut_rows])
            seen = part.trained_uncut.astype(np.int64) * times[begin + part.all_rows]
            self.trained_uncut += int(seen.sum())
            self._times.append(times[begin + part.rows])
        self.split.index.places[begin + part.dropped_rows] = LEFT_OUT
        self.dropped.update(part.dropped)
        self.truncated += part.truncated
        self.over += part.over
        if part.longest and (self.longest is None or part.longest.tokens > self.longest.tokens):
            self.longest = part.longest
        tally(self._sizes, part.sizes)
        self._account(part)
        if self.stream:
            self._places(part.lines, part.piece, part.sizes, file=file, lines=lines, first=first)
        elif len(part.sizes):
            self._write_rows(part, file)

    def _account(self, part: Part) -> None:
        """Digest of the tokens, and what is trained."""
        if not len(part.ids):
            return
        self._trained += int(np.count_nonzero(part.trained))
        heads = memoryview(part.sizes.astype("<i8").tobytes())
        ids, trained = part.ids.data.cast("B"), part.trained.data.cast("B")
        start, update = 0, self._digest.update
        for row, size in enumerate(part.sizes.tolist()):
            end = start + size
            update(heads[8 * row : 8 * row + 8])
            update(ids[4 * start : 4 * end])
            update(trained[start:end])
            if len(self.ends) < _END_ROWS:
                self.ends.append(part.ids[start:end][part.trained[start:end]])
            start = end

    def _places(
        self,
        line: NDArray[np.int64],
        piece: NDArray[np.int32],
        length: NDArray[np.int32],
        *,
        file: int,
        lines: NDArray[np.int64] | None,
        first: int,
    ) -> None:
        assert lines is not None
        columns: dict[str, NDArray[Any]] = {
            "line": line,
            "offset": lines[line - first],
            "source": np.full(len(line), file, dtype=np.int32),
            "piece": piece,
            "length": length,
        }
        for name, values in columns.items():
            self._spilled.setdefault(name, Spilled(values.dtype)).add(values)

    def add_tests(self, part: Tests, *, file: int, lines: NDArray[np.int64] | None, first: int) -> None:
        """One piece's rows of a test split."""
        self.rows += len(part.chats)
        tally(self.prompts, part.prompts)
        tally(self.answers, part.answers)
        if self.stream:
            numbers = np.array([line for _, line, _, _ in part.chats], dtype=np.int64)
            none = np.zeros(len(numbers), dtype=np.int32)
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
        offsets = np.concatenate([[0], np.cumsum(part.sizes)]).astype(np.int32)
        bounds = pa.array(offsets, pa.int32())
        count = len(part.sizes)
        digests = [None, pa.py_buffer(part.digests.tobytes())]
        columns = {
            "ids": pa.ListArray.from_arrays(bounds, pa.array(part.ids.astype(self.dtype))),
            "trained": pa.ListArray.from_arrays(bounds, pa.array(part.trained)),
            "file": pa.array(np.full(count, file, dtype=np.int32)),
            "line": pa.array(part.lines),
            "id": pa.Array.from_buffers(pa.binary(12), count, digests),
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
            places: dict[str, Any] = {name: column.read() for name, column in self._spilled.items()}
            with (self.folder / f"{self.split.number}.npz").open("wb") as file:
                np.savez(file, **places)

    def report(self) -> SplitReport:
        """The account of the split. Raises DataError where no row is left."""
        split = self.split
        kept = split.index.places == split.number
        count = int(np.count_nonzero(kept))
        if not count:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
            raise DataError(
                f"no row is left in the split {split.name!r}: {reasons or 'it has none'}",
                file=split.files[0].shown,
                hint="raise training.sequence_length, or give shorter rows",
            )
        ids = split.index.column("ids")[kept]
        ids.sort()
        different = 1 + int((ids[1:] != ids[:-1]).sum())
        return SplitReport(
            name=split.name,
            files=tuple(file.shown for file in split.files),
            cut_from_train=split.cut,
            read=split.read,
            kept=count,
            dropped=dict(self.dropped),
            truncated=self.truncated,
            duplicates=count - different,
            tokens=None if self.test else lengths_of(self._sizes),
            trained_tokens=self._trained,
            digest=_sorted_digest(ids),
            weights=split.weights,
            copies=0 if split.times is None else int((split.times[kept] - 1).sum()),
        )

    def token_digest(self) -> str:
        """Digest of the rendered rows, as ``load`` makes it."""
        return self._digest.hexdigest()

    def order(self) -> NDArray[np.int64]:
        """Stored rows as often as they are seen: all once, then those seen again, and so on."""
        times = np.concatenate(self._times or [np.zeros(0, np.int32)])
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
