"""Rows read again, one by one, by where they begin in their file: JSONL and CSV by byte, also within gzip
and zstd, tables by number. Memory stays bounded whatever the size of the file.
"""

from __future__ import annotations

import csv
import io
import weakref
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from luthier.data.opened import as_file_problem, compression_of
from luthier.data.read import RawRow, csv_header, parse_lines
from luthier.data.sources import Source
from luthier.data.tables import arrow_library, class_names, named
from luthier.errors import DataError, LuthierError, Unsupported
from luthier.files import readable

KINDS = ("jsonl", "csv", "tsv", "parquet", "arrow")
FRAME_BYTES = 32 << 20
"""Largest zstd frame, decompressed: a row is reached from the beginning of its frame only."""
GROUP_BYTES = 256 << 20
"""Largest row group of a Parquet file, for the same reason."""
_OPEN = 64
"""Files that are kept open."""
_MARKS = 1_024
"""Places of gzip files, all together, from which decompressing can go on; about 40 kB each."""
_MARK_BYTES = 4 << 20
_BLOCK, _PIECE = 1 << 14, 1 << 20
_BATCH = 1_000
_WAYS = "write the rows as .jsonl, or free disk space for data.storage=cache"


def demand(source: Source) -> None:
    """Raise Unsupported where single rows of a file cannot be read again within bounded memory and time."""
    if source.kind not in KINDS:
        why = "one JSON value, read as a whole" if source.kind == "json" else "cut into rows as it is read"
        raise Unsupported(
            f"rows of .{'json' if source.kind == 'json' else 'txt'} files cannot be read again one by one: "
            f"the file is {why}",
            file=source.shown,
            hint=_WAYS,
        )
    with as_file_problem(source):
        if source.kind == "parquet":
            _demand_groups(source)
        elif source.kind == "arrow":
            _Arrow(source)
        elif compression_of(source) == ".zst":
            _demand_frames(source)


def _demand_groups(source: Source) -> None:
    groups = arrow_library(source, "pyarrow.parquet").parquet.read_metadata(source.path)
    sizes = [groups.row_group(index).total_byte_size for index in range(groups.num_row_groups)]
    if sizes and max(sizes) > GROUP_BYTES:
        raise Unsupported(
            f"a row group takes {readable(max(sizes))}: each row would be reached through as much",
            file=source.shown,
            hint=f"write it with smaller row groups (row_group_size=10_000), or {_WAYS}",
        )


def _demand_frames(source: Source) -> None:
    packed = Packed(source)
    try:
        while packed.skip(_PIECE):
            if packed.since_mark > FRAME_BYTES:
                raise Unsupported(
                    f"a zstd frame holds more than {readable(FRAME_BYTES)}: rows in it can be reached from "
                    "its beginning only",
                    file=source.shown,
                    hint="compress it in frames (pzstd), as .gz, or not at all; or free disk space for "
                    "data.storage=cache",
                )
    finally:
        packed.close()


@dataclass(frozen=True, slots=True)
class _Mark:
    """A place from which decompressing can go on."""

    place: int
    """Of the decompressed file."""
    packed: int
    """Of the compressed one."""
    state: Any = None
    """The decompressor there; None where a new one begins."""


class Packed(io.RawIOBase):
    """A gzip or zstd file that can be read from any place of its content.

    What lies behind the furthest place read so far is reached by decompressing up to it; on the way
    marks are left, at most ``marks`` of them, to begin from later.
    """

    def __init__(self, source: Source, *, marks: int = _MARKS) -> None:
        self._file = source.path.open("rb")
        self._gzip = compression_of(source) == ".gz"
        if not self._gzip:
            import zstandard

            self._zstd = zstandard
        self._most, self._every = marks, _MARK_BYTES
        self._marks = [_Mark(0, 0)]
        self._go_to(self._marks[0])

    def _go_to(self, mark: _Mark) -> None:
        self._file.seek(mark.packed)
        self._work: Any = None if mark.state is None else mark.state.copy()
        self._left = self._ready = b""
        self._at = 0
        self._made = mark.place

    @property
    def since_mark(self) -> int:
        """Bytes from the last mark to what was read last."""
        return self._made - self._marks[-1].place

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def tell(self) -> int:
        return self._made - len(self._ready) + self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_CUR:
            offset += self.tell()
        elif whence != io.SEEK_SET:
            raise io.UnsupportedOperation("the end of a compressed file is not known")
        index = bisect_right([mark.place for mark in self._marks], offset) - 1
        mark = self._marks[index]
        if offset < self.tell() or mark.place > self.tell():
            self._go_to(mark)
        while self.tell() < offset and self.skip(offset - self.tell()):
            pass
        return self.tell()

    def skip(self, most: int) -> int:
        """Pass over up to this many bytes; how many they were, 0 at the end."""
        if self._at == len(self._ready) and not self._more():
            return 0
        count = min(most, len(self._ready) - self._at)
        self._at += count
        return count

    def readinto(self, buffer: Any) -> int:
        if self._at == len(self._ready) and not self._more():
            return 0
        count = min(len(buffer), len(self._ready) - self._at)
        buffer[:count] = self._ready[self._at : self._at + count]
        self._at += count
        return count

    def _more(self) -> bool:
        """Decompress the next piece."""
        self._ready, self._at = b"", 0
        while not self._ready:
            piece = self._left
            if not piece:
                if self._gzip:
                    self._mark(self._file.tell())
                piece = self._file.read(_BLOCK)
            if not piece:
                self._ready = self._work.flush() if self._gzip and self._work is not None else b""
                self._work = None
                self._made += len(self._ready)
                return bool(self._ready)
            self._ready = self._inflate(piece) if self._gzip else self._frame(piece)
        return True

    def _inflate(self, piece: bytes) -> bytes:
        if self._work is None:
            self._work = zlib.decompressobj(31)
        made: bytes = self._work.decompress(piece, _PIECE)
        self._made += len(made)
        if self._work.eof:  # another member may follow
            self._left, self._work = self._work.unused_data.lstrip(b"\0"), None
        else:
            self._left = self._work.unconsumed_tail
        return made

    def _frame(self, piece: bytes) -> bytes:
        if self._work is None:
            self._mark(self._file.tell() - len(piece))
            self._work = self._zstd.ZstdDecompressor().decompressobj()
        try:
            made: bytes = self._work.decompress(piece)
        except self._zstd.ZstdError as error:
            raise OSError(str(error)) from error
        self._made += len(made)
        self._left = b""
        if self._work.eof:
            self._left, self._work = self._work.unused_data, None
        return made

    def _mark(self, packed: int) -> None:
        """Leave a mark here, where the last one is far enough away."""
        far = self._made - self._marks[-1].place
        if far < self._every if self._gzip else far <= 0:
            return
        state = None if self._work is None else self._work.copy()
        self._marks.append(_Mark(self._made, packed, state))
        if self._gzip and len(self._marks) > self._most:
            self._marks, self._every = self._marks[::2], 2 * self._every


class _Reader(Protocol):
    def row(self, offset: int, line: int) -> RawRow | None:
        """The row that begins there; None where there is none any more."""


class _Bytes:
    """A file that can be read from any byte of its content."""

    def __init__(self, source: Source, marks: int) -> None:
        self.source = source
        if compression_of(source) is None:
            self.stream: Any = source.path.open("rb", buffering=1 << 16)
        else:
            self.stream = io.BufferedReader(Packed(source, marks=marks), 1 << 16)
        weakref.finalize(self, self.stream.close)


class _Jsonl(_Bytes):
    def row(self, offset: int, line: int) -> RawRow | None:
        self.stream.seek(offset)
        raw = self.stream.readline().removeprefix(b"\xef\xbb\xbf").rstrip(b"\n")
        return next(parse_lines(raw, line, self.source.shown, _no_report), None)


class _Csv(_Bytes):
    def __init__(self, source: Source, marks: int) -> None:
        super().__init__(source, marks)
        text = self._text(0, "utf-8-sig")
        self.delimiter, self.names = csv_header(source, text)
        text.detach()

    def _text(self, offset: int, encoding: str = "utf-8") -> io.TextIOWrapper:
        self.stream.seek(offset)
        return io.TextIOWrapper(self.stream, encoding=encoding, errors="surrogateescape", newline="")

    def row(self, offset: int, line: int) -> RawRow | None:
        text = self._text(offset)
        try:
            cells = next(csv.reader(text, delimiter=self.delimiter, strict=True), [])
        except csv.Error:
            return None
        finally:
            text.detach()
        if len(cells) != len(self.names):
            return None
        return RawRow(dict(zip(self.names, cells, strict=True)), self.source.shown, line, offset)


class _Parquet:
    """Rows by number: the batches of a row group are read up to the one that holds the row."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._file = arrow_library(source, "pyarrow.parquet").parquet.ParquetFile(
            source.path, buffer_size=1 << 20, pre_buffer=False
        )
        groups = self._file.metadata
        sizes = [groups.row_group(index).num_rows for index in range(groups.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._classes = class_names(self._file.schema_arrow)
        self._group = self._number = -1
        self._batches: Any = iter(())
        self._batch: Any = None

    def row(self, offset: int, line: int) -> RawRow | None:
        group = int(np.searchsorted(self._starts, offset, side="right")) - 1
        if group + 1 >= len(self._starts):
            return None
        number, place = divmod(offset - int(self._starts[group]), _BATCH)
        if group != self._group or number < self._number:
            self._batches = self._file.iter_batches(batch_size=_BATCH, row_groups=[group])
            self._group, self._number = group, -1
        while self._number < number:
            self._batch = next(self._batches, None)
            self._number += 1
            if self._batch is None:
                self._group = -1
                return None
        return _at(self._batch, place, self._classes, self.source, line)


class _Arrow:
    """Rows by number of a mapped file."""

    def __init__(self, source: Source) -> None:
        self.source = source
        library = arrow_library(source, "pyarrow.ipc")
        try:
            self._file = library.ipc.open_file(library.memory_map(str(source.path)))
        except library.ArrowInvalid as error:
            raise Unsupported(
                "Arrow's streaming form is read from its beginning only",
                file=source.shown,
                hint=f"write it in the file form or as Parquet; or {_WAYS}",
            ) from error
        sizes = [self._file.get_batch(index).num_rows for index in range(self._file.num_record_batches)]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._classes = class_names(self._file.schema)

    def row(self, offset: int, line: int) -> RawRow | None:
        index = int(np.searchsorted(self._starts, offset, side="right")) - 1
        if index + 1 >= len(self._starts):
            return None
        batch = self._file.get_batch(index)
        return _at(batch, offset - int(self._starts[index]), self._classes, self.source, line)


def _at(batch: Any, place: int, classes: dict[str, list[str]], source: Source, line: int) -> RawRow | None:
    found = batch.slice(place, 1).to_pylist()
    return RawRow(named(found[0], classes), source.shown, line, line - 1) if found else None


class Again:
    """Rows of some files, by file and place. Files that change meanwhile are refused."""

    def __init__(self, files: Sequence[Source]) -> None:
        self._files = files
        self._known = [_stamp(file) for file in files]
        self._open: OrderedDict[int, _Reader] = OrderedDict()

    def row(self, file: int, offset: int, line: int) -> RawRow:
        """One row. Raises DataError where the file is another one now, FileProblem where it is gone."""
        source = self._files[file]
        with as_file_problem(source):
            if _stamp(source) != self._known[file]:
                raise _changed(source, line)
            if file not in self._open:
                self._open[file] = self._reader(source)
                if len(self._open) > _OPEN:
                    self._open.popitem(last=False)
            self._open.move_to_end(file)
            try:
                row = self._open[file].row(offset, line)
            except LuthierError as problem:
                raise _changed(source, line) from problem
        if row is None:
            raise _changed(source, line)
        return row

    def _reader(self, source: Source) -> _Reader:
        marks = max(16, _MARKS // min(_OPEN, len(self._files)))
        match source.kind:
            case "jsonl":
                return _Jsonl(source, marks)
            case "parquet":
                return _Parquet(source)
            case "arrow":
                return _Arrow(source)
            case _:
                return _Csv(source, marks)


def _stamp(source: Source) -> tuple[int, int]:
    with as_file_problem(source):
        stat = source.path.stat()
    return stat.st_size, stat.st_mtime_ns


def _no_report(problem: LuthierError) -> None:
    raise problem


def _changed(source: Source, line: int) -> DataError:
    return DataError(
        "this row has changed since the run was prepared",
        file=source.shown,
        line=line,
        hint="start a new run with `luthier train`, or bring the old file back",
    )
