"""Rows that stay on disk: rendered rows in a memory-mapped Arrow file, or read again from their source."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import numpy as np

from luthier.data.again import Again
from luthier.data.read import RawRow
from luthier.errors import FileProblem, Unsupported
from luthier.schema.protocols import ChatRow, TokenRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")
_MAPPED = 256 << 20
"""Bytes handed out before a file is mapped anew, so that pages read long ago leave the memory."""
_KEPT = 512
"""Rows read again from their source that are remembered."""


def arrow() -> Any:
    """The pyarrow package. Raises Unsupported where it is not installed."""
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise Unsupported(
            "keeping rendered rows on disk needs the pyarrow package",
            hint="pip install 'luthier[data]', or set data.storage=memory",
        ) from error
    return pyarrow


class LazyRows(Sequence[T], Generic[T]):
    """Rows by number, read when they are asked for. order: which stored row stands where."""

    def __init__(self, order: NDArray[np.int64] | range) -> None:
        self.order = order

    def stored(self, index: int) -> T:
        """The row that is stored under a number."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self.stored(int(one)) for one in self.order[index]]
        return self.stored(int(self.order[index]))

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[T]:
        return (self.stored(int(one)) for one in self.order)


class _Mapped:
    """An Arrow file of record batches, mapped, and mapped anew after much of it was read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._arrow = arrow()
        self._open()
        counts = [self.batch(index).num_rows for index in range(self._reader.num_record_batches)]
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._kept: tuple[int, Any] | None = None

    def _open(self) -> None:
        try:
            self._reader = self._arrow.ipc.open_file(self._arrow.memory_map(str(self.path)))
        except (OSError, self._arrow.ArrowInvalid) as error:
            raise FileProblem(
                f"cannot be read: {error}",
                file=self.path,
                hint="remove this folder; it is made again from the data",
            ) from error
        self._read = 0

    def batch(self, index: int) -> Any:
        """A record batch, by number."""
        return self._reader.get_batch(index)

    def at(self, row: int) -> tuple[int, Any, int]:
        """Number of the batch, the batch, and the row's place in it."""
        index = int(np.searchsorted(self.starts, row, side="right")) - 1
        if self._kept is None or self._kept[0] != index:
            if self._read > _MAPPED:
                self._kept = None
                self._open()
            batch = self.batch(index)
            self._read += batch.nbytes
            self._kept = (index, batch)
        return index, self._kept[1], row - int(self.starts[index])


class StoredRows(LazyRows[TokenRow]):
    """Rendered rows of an Arrow file with the columns ids, trained, file, line and id.

    lengths: [rows] int32, tokens of each row in the order of the sequence.
    """

    def __init__(self, path: Path, files: Sequence[str], order: NDArray[np.int64] | None = None) -> None:
        self._mapped = _Mapped(path)
        self._files = files
        starts = self._mapped.starts
        sizes = [
            np.diff(np.asarray(self._mapped.batch(index).column("ids").offsets))
            for index in range(len(starts) - 1)
        ]
        stored = np.concatenate(sizes) if sizes else np.zeros(0, np.int32)
        super().__init__(range(len(stored)) if order is None else order)
        self.lengths: NDArray[np.int32] = stored if order is None else stored[order]

    def stored(self, index: int) -> TokenRow:
        _, batch, place = self._mapped.at(index)
        ids, trained = batch.column("ids"), batch.column("trained")
        start, end = ids.offsets[place].as_py(), ids.offsets[place + 1].as_py()
        return TokenRow(
            ids.values[start:end].to_numpy().astype(np.int32),
            np.array(trained.values[start:end].to_numpy(zero_copy_only=False), dtype=np.bool_),
            self._files[batch.column("file")[place].as_py()],
            batch.column("line")[place].as_py(),
            batch.column("id")[place].as_py().hex(),
        )


class StoredChats(LazyRows[ChatRow]):
    """Conversations of an Arrow file with the columns row (JSON), file, line, id and group."""

    def __init__(self, path: Path, files: Sequence[str]) -> None:
        self._mapped = _Mapped(path)
        self._files = files
        super().__init__(range(int(self._mapped.starts[-1])))

    def stored(self, index: int) -> ChatRow:
        _, batch, place = self._mapped.at(index)
        messages, tools = json.loads(batch.column("row")[place].as_py())
        return ChatRow(
            messages,
            self._files[batch.column("file")[place].as_py()],
            batch.column("line")[place].as_py(),
            batch.column("id")[place].as_py().hex(),
            tools,
            batch.column("group")[place].as_py(),
        )


class SourceRows(LazyRows[T]):
    """Rows that are read from their file each time: nothing but their places is kept.

    places: source (number of the file), offset, line, piece (which piece of a cut row) of each stored
    row, and length where rows are rendered. make: the raw row and the piece into the row.
    """

    def __init__(
        self,
        again: Again,
        places: dict[str, NDArray[Any]],
        make: Callable[[RawRow, int], T],
        order: NDArray[np.int64] | None = None,
    ) -> None:
        super().__init__(range(len(places["line"])) if order is None else order)
        self._again, self._places, self._make = again, places, make
        self._recent: OrderedDict[int, T] = OrderedDict()
        if "length" in places:
            stored = places.pop("length")
            self.lengths: NDArray[np.int32] = stored if order is None else stored[order]

    def stored(self, index: int) -> T:
        if index in self._recent:
            self._recent.move_to_end(index)
            return self._recent[index]
        source, offset, line, piece = (
            int(self._places[name][index]) for name in ("source", "offset", "line", "piece")
        )
        row = self._make(self._again.row(source, offset, line), piece)
        self._recent[index] = row
        if len(self._recent) > _KEPT:
            self._recent.popitem(last=False)
        return row


def row_lengths(rows: Sequence[TokenRow]) -> Sequence[int]:
    """Tokens of each row, without reading the rows where they lie on disk."""
    known = getattr(rows, "lengths", None)
    found: Sequence[int] = [len(row.ids) for row in rows] if known is None else known.tolist()
    return found
