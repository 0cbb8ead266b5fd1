"""Files into rows: JSONL, JSON, CSV/TSV, Parquet, Arrow, plain text, plain or compressed.

Rows stream: memory stays bounded for everything but a .json array, which is one value.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import importlib
import io
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any

from luthier.data.sources import Source, resolve
from luthier.errors import DataError, FileProblem, LuthierError, Unsupported

TEXT_ROW_CHARACTERS = 2_000
"""Plain text is cut at the first blank line (or else line end) after this many characters into a row."""

Report = Callable[[LuthierError], None]
"""Told of a broken row, which is then left out. Without one, the first broken row is raised."""

csv.field_size_limit(2**31 - 1)
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as its file holds it."""

    value: dict[str, Any]
    file: str
    line: int
    """1-based line of the file; number of the row where the file has no lines (JSON array, Parquet)."""
    offset: int | None = field(default=None, compare=False)
    """Where it begins: byte of the file, decompressed (CSV), or place in the table; None where not told."""


def read_rows(sources: tuple[str, ...], *, base: Path, on_problem: Report | None = None) -> Iterator[RawRow]:
    """Yield the rows of files, folders and globs (relative to base) in a stable order.

    Raises FileProblem for files that are missing, unreadable or not what they claim to be, and
    DataError for a broken row, with file and line, or where all files together hold no row.
    """
    resolved = resolve(sources, base=base)
    any_row = False
    for source in resolved.files:
        for row in read_file(source, on_problem=on_problem):
            any_row = True
            yield row
    if not any_row:
        raise DataError(
            "the data set is empty: no row was read",
            file=resolved.files[0].shown,
            hint="give a file with at least a few rows, or mend the broken ones named above",
        )


def read_file(source: Source, *, on_problem: Report | None = None) -> Iterator[RawRow]:
    """Yield the rows of one file. Errors as in read_rows, but an empty file is no error."""
    reader = {
        "jsonl": _jsonl,
        "json": _json,
        "csv": _csv,
        "tsv": _csv,
        "text": _text,
        "parquet": _parquet,
        "arrow": _arrow,
    }[source.kind]
    report = on_problem or _raise
    with as_file_problem(source):
        yield from reader(source, report)


@contextmanager
def as_file_problem(source: Source) -> Iterator[None]:
    """What the system says of a file that cannot be read, as FileProblem."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise FileProblem(
            f"cannot be read: {reason}",
            file=source.shown,
            hint="check the file's permissions, and that it was downloaded or compressed to its end",
        ) from error


def _raise(problem: LuthierError) -> None:
    raise problem


@contextmanager
def open_binary(source: Source) -> Iterator[IO[bytes]]:
    """Open a file, decompressed."""
    compression = compression_of(source)
    with source.path.open("rb", buffering=1 << 20) as plain:
        if compression == ".gz":
            with gzip.open(plain, "rb") as packed:
                yield io.BufferedReader(packed, 1 << 20)
        elif compression == ".zst":
            yield io.BufferedReader(_Zstd(plain, source.shown), 1 << 20)
        else:
            yield plain


def compression_of(source: Source) -> str | None:
    """``.gz`` or ``.zst``, by what the file is and not only by its name: downloads lose or keep suffixes."""
    with source.path.open("rb") as plain:
        magic = plain.read(4)
    if source.compression == ".gz" or magic.startswith(_GZIP):
        return ".gz"
    return ".zst" if source.compression == ".zst" or magic == _ZSTD else None


class _Zstd(io.RawIOBase):
    """A zstd file, all frames of it, that says where it ends too early (the library's reader does not)."""

    def __init__(self, packed: IO[bytes], shown: str) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise Unsupported(
                "reading .zst needs the zstandard package",
                file=shown,
                hint="pip install 'luthier[data]', or decompress the file",
            ) from error
        self._packed, self._library = packed, zstandard
        self._frame: Any = zstandard.ZstdDecompressor().decompressobj()
        self._ready, self._place, self._begun = b"", 0, False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._place == len(self._ready):
            raw = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._begun = self._library.ZstdDecompressor().decompressobj(), False
            raw = raw or self._packed.read(1 << 17)
            if not raw:
                if self._begun:
                    raise EOFError("the compressed data end too early")
                return 0
            self._begun, self._place = True, 0
            try:
                self._ready = self._frame.decompress(raw)
            except self._library.ZstdError as error:
                raise OSError(str(error)) from error
        count = min(len(buffer), len(self._ready) - self._place)
        buffer[:count] = self._ready[self._place : self._place + count]
        self._place += count
        return count


def told_encoding(head: bytes) -> str | None:
    """Encoding told by a byte order mark, or by the zero bytes of ASCII in UTF-16."""
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if head.startswith(mark):
            return name
    if len(head) >= 2 and not head[1] and head[0]:
        return "utf-16-le"
    return "utf-16-be" if len(head) >= 2 and not head[0] and head[1] else None


def _lines(source: Source, report: Report) -> Iterator[tuple[int, str]]:
    """Numbered lines of text, ends stripped of CR and LF. LF (with or without CR) ends a line, or CR
    where a file has no LF; U+2028 and the like are letters of a JSON string.
    """
    with open_binary(source) as stream:
        head = stream.peek(4) if isinstance(stream, io.BufferedReader) else b""
        encoding = told_encoding(head[:4])
        if encoding not in (None, "utf-8-sig"):
            number = 0
            text = io.TextIOWrapper(stream, encoding=encoding, newline=None)
            try:
                for line in text:
                    number += 1
                    yield number, line.rstrip("\n")
            except UnicodeError as error:
                report(_broken_encoding(source, number + 1, encoding, error))
            return
        number = 0
        for raw in stream:
            if not number and encoding:
                raw = raw.removeprefix(codecs.BOM_UTF8)  # noqa: PLW2901
            old = number == 0 and not raw.endswith(b"\n") and b"\r" in raw.rstrip(b"\r")
            for piece in raw.split(b"\r") if old else (raw,):
                number += 1
                try:
                    yield number, piece.decode("utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    report(_bad_encoding(source.shown, number, piece, error))


def _broken_encoding(source: Source, line: int, encoding: str | None, error: UnicodeError) -> DataError:
    return DataError(
        f"is broken {(encoding or '').upper()} from here on: {getattr(error, 'reason', error)}",
        file=source.shown,
        line=line,
        hint="check that the file was written to its end, and convert it to UTF-8",
    )


def _bad_encoding(shown: str, line: int, raw: bytes, error: UnicodeDecodeError) -> DataError:
    start = max(0, error.start - 20)
    near = raw[start : error.start + 20].decode("latin-1")
    return DataError(
        f"is not UTF-8: byte 0x{raw[error.start]:02x} at column {error.start + 1}, near {near!r}",
        file=shown,
        line=line,
        hint="convert the file, for example: iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW",
    )


def _jsonl(source: Source, report: Report) -> Iterator[RawRow]:
    for number, line in _lines(source, report):
        if not line or line.isspace():
            continue
        row = _row(source.shown, number, line, report)
        if row is not None:
            yield row


def parse_lines(raw: bytes, first: int, shown: str, report: Report) -> Iterator[RawRow]:
    """Rows of whole lines of a UTF-8 JSONL file, of which the first has this number."""
    for number, piece in enumerate(raw.split(b"\n"), first):
        if not piece or piece.isspace():
            continue
        try:
            line = piece.decode("utf-8")
        except UnicodeDecodeError as error:
            report(_bad_encoding(shown, number, piece, error))
            continue
        row = _row(shown, number, line, report)
        if row is not None:
            yield row


def _row(shown: str, number: int, line: str, report: Report) -> RawRow | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        report(_bad_json(shown, number, line, error))
        return None
    if isinstance(value, dict):
        return RawRow(value, shown, number)
    report(_not_object(shown, number, value))
    return None


def _bad_json(shown: str, number: int, line: str, error: Exception) -> DataError:
    if isinstance(error, json.JSONDecodeError):
        # The line of the message counts within the row; the file's line stands in `where`.
        what = f"broken JSON at column {error.colno}: {error.msg}"
        near = line[max(0, error.pos - 20) : error.pos + 20]
        what += f", near {near!r}" if near else ""
    elif isinstance(error, RecursionError):
        what = "broken JSON: nested too deeply"
    else:  # a whole number of thousands of digits
        what = f"broken JSON: {error}"
    hint = "mend or remove this line; every line must be one JSON object"
    if line.lstrip().startswith("[") and number == 1:
        hint = "this looks like one JSON array over several lines: rename the file to .json"
    elif line.strip() in ("{", "[") or line.rstrip().endswith("{"):
        hint = "this looks like JSON over several lines: rename the file to .json, or write one object a line"
    elif "'" in line[:40] and '"' not in line[:40]:
        hint = "JSON wants double quotes; this looks like Python: write it with json.dumps"
    return DataError(what, file=shown, line=number, hint=hint)


def _not_object(shown: str, line: int, value: object) -> DataError:
    kind = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "a yes/no"}
    what = "null" if value is None else kind.get(type(value), type(value).__name__)
    return DataError(
        f"is {what}, not a JSON object",
        file=shown,
        line=line,
        hint='every row must be an object with named fields, like {"prompt": "...", "completion": "..."}',
    )


_ROW_KEYS = ("data", "rows", "train", "examples", "items", "conversations", "instances")


def _json(source: Source, report: Report) -> Iterator[RawRow]:
    with open_binary(source) as stream:
        raw = stream.read()
    encoding = told_encoding(raw[:4]) or "utf-8"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        report(_bad_encoding(source.shown, raw[: error.start].count(b"\n") + 1, raw, error))
        return
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # JSON lines under the name of JSON: common enough
            yield from _jsonl(source, report)
            return
        report(
            DataError(
                f"broken JSON at column {error.colno}: {error.msg}, near "
                f"{text[max(0, error.pos - 20) : error.pos + 20]!r}",
                file=source.shown,
                line=error.lineno,
                hint="mend the file; it must be one array of objects, or one object a line",
            )
        )
        return
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        report(DataError(f"broken JSON: {what}", file=source.shown, line=1))
        return
    rows = _rows_of(value)
    if rows is None:
        raise FileProblem(
            "holds no list of rows",
            file=source.shown,
            hint="write an array of objects, or an object with the array under `data`",
        )
    for number, row in enumerate(rows, 1):
        if isinstance(row, dict):
            yield RawRow(row, source.shown, number)
        else:
            report(_not_object(source.shown, number, row))


def _rows_of(value: Any) -> list[Any] | None:
    if isinstance(value, list):
        return value
    if not isinstance(value, dict) or not value:
        return None
    lists = {key: item for key, item in value.items() if isinstance(item, list)}
    if len(lists) == len(value) > 1 and len({len(item) for item in lists.values()}) == 1:
        # Columns, as pandas writes them with orient="list".
        return [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]
    for key in _ROW_KEYS:
        if key in lists and all(isinstance(item, dict) for item in lists[key][:5]):
            if key == "conversations" and lists[key] and {"from", "role"} & set(lists[key][0]):
                continue  # one conversation, not a list of rows
            return lists[key]
    if all(isinstance(item, dict) for item in value.values()) and len(value) > 1:
        return list(value.values())
    return [value]


def _csv(source: Source, report: Report) -> Iterator[RawRow]:
    with open_binary(source) as stream:
        head = stream.peek(4)[:4] if isinstance(stream, io.BufferedReader) else b""
        encoding = told_encoding(head) or "utf-8"
        # Bytes that are no UTF-8 come as lone surrogates, so that each such row is told by its line.
        errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
        try:
            text = io.TextIOWrapper(stream, encoding=encoding, errors=errors, newline="")
            yield from _csv_rows(source, text, report, encoding)
        except UnicodeError as error:
            report(_broken_encoding(source, 1, encoding, error))


def csv_header(source: Source, text: io.TextIOWrapper) -> tuple[str, list[str]]:
    """Delimiter and names of the columns, by the beginning of a file."""
    first = text.readline()
    delimiter = "\t" if source.kind == "tsv" else _delimiter(first)
    rows = csv.reader(chain([first], text), delimiter=delimiter, strict=True)
    return delimiter, _header(source, next((cells for cells in rows if cells and cells != [""]), []))


def _csv_rows(source: Source, text: io.TextIOWrapper, report: Report, encoding: str) -> Iterator[RawRow]:
    first = text.readline()
    if not first.strip():
        return
    delimiter = "\t" if source.kind == "tsv" else _delimiter(first)
    read = len(codecs.BOM_UTF8) if encoding == "utf-8-sig" else 0

    def lines() -> Iterator[str]:
        nonlocal read
        for line in chain([first], text):
            read += len(line) if line.isascii() else len(line.encode("utf-8", "surrogateescape"))
            yield line

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    names: list[str] = []
    start = 1
    while True:
        begin = read
        try:
            cells = next(reader, None)
        except csv.Error as error:
            report(
                DataError(
                    f"broken {source.kind.upper()}: {error}",
                    file=source.shown,
                    line=reader.line_num,
                    hint='texts with quotes or line ends stand in double quotes, inner quotes doubled ("")',
                )
            )
            start = reader.line_num + 1
            continue
        if cells is None:
            return
        line, start = start, reader.line_num + 1
        if not cells or cells == [""]:
            continue
        if not names:
            names = _header(source, cells)
        elif len(cells) != len(names):
            report(
                DataError(
                    f"has {len(cells)} fields where the header names {len(names)}",
                    file=source.shown,
                    line=line,
                    hint=f"a text with {delimiter!r} in it must stand in double quotes",
                )
            )
        elif (bad := next((cell for cell in cells if not _whole(cell)), None)) is not None:
            raw = bad.encode("utf-8", "surrogateescape")
            try:
                raw.decode("utf-8")
            except UnicodeDecodeError as error:
                report(_bad_encoding(source.shown, line, raw, error))
        else:
            offset = begin if encoding.startswith("utf-8") else None
            yield RawRow(dict(zip(names, cells, strict=True)), source.shown, line, offset)


def _whole(text: str) -> bool:
    """Whether a text holds letters only, not the halves that stand for undecoded bytes."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _delimiter(first: str) -> str:
    counts = {mark: first.count(mark) for mark in (",", ";", "\t", "|")}
    best = max(counts, key=lambda mark: counts[mark])
    return best if counts[best] else ","


def _header(source: Source, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if names[:1] == [""] and len(names) > 1:
        names[0] = "index"  # pandas writes its index under no name
    if len(set(names)) != len(names) or not all(names):
        raise FileProblem(
            "the first line must name the columns, each once",
            file=source.shown,
            line=1,
            hint="add a first line like: prompt,completion",
        )
    return names


def _text(source: Source, report: Report) -> Iterator[RawRow]:
    part: list[str] = []
    size, start = 0, 1
    for number, line in _lines(source, report):
        part.append(line)
        size += len(line) + 1
        full = size >= TEXT_ROW_CHARACTERS
        if full and (not line.strip() or size >= 4 * TEXT_ROW_CHARACTERS):
            text = "\n".join(part).strip("\n")
            if text.strip():
                yield RawRow({"text": text}, source.shown, start)
            part, size, start = [], 0, number + 1
    text = "\n".join(part).strip("\n")
    if text.strip():
        yield RawRow({"text": text}, source.shown, start)


def arrow_library(source: Source, part: str) -> Any:
    """The pyarrow package with one of its modules. Raises Unsupported where it is not installed."""
    try:
        importlib.import_module(part)
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise Unsupported(
            f"reading {source.kind} needs the pyarrow package",
            file=source.shown,
            hint="pip install 'luthier[data]', or convert the file to JSONL",
        ) from error


def _plain_file(source: Source, kind: str) -> None:
    if source.compression:
        raise Unsupported(
            f"{kind} is compressed inside; {source.compression} around it is not read",
            file=source.shown,
            hint="decompress the file first",
        )


def _parquet(source: Source, report: Report) -> Iterator[RawRow]:  # noqa: ARG001 - one signature for all
    pyarrow = arrow_library(source, "pyarrow.parquet")
    _plain_file(source, "Parquet")
    try:
        with pyarrow.parquet.ParquetFile(source.path) as file:
            classes = class_names(file.schema_arrow)
            yield from _batches(source, file.iter_batches(batch_size=1_000), classes)
    except pyarrow.ArrowInvalid as error:
        raise _not_arrow(source, "Parquet", error) from error


def _arrow(source: Source, report: Report) -> Iterator[RawRow]:  # noqa: ARG001 - one signature for all
    pyarrow = arrow_library(source, "pyarrow.ipc")
    _plain_file(source, "Arrow")
    try:
        with pyarrow.memory_map(str(source.path)) as mapped:
            try:
                reader = pyarrow.ipc.open_file(mapped)
                batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
            except pyarrow.ArrowInvalid:  # the streaming form, as `datasets` writes it
                mapped.seek(0)
                reader = batches = pyarrow.ipc.open_stream(mapped)
            yield from _batches(source, batches, class_names(reader.schema))
    except pyarrow.ArrowInvalid as error:
        raise _not_arrow(source, "Arrow", error) from error


def class_names(schema: Any) -> dict[str, list[str]]:
    """Column -> names of its classes, where `datasets` wrote the rows and says so."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {
            name: list(kind["names"])
            for name, kind in features.items()
            if isinstance(kind, dict) and kind.get("_type") == "ClassLabel" and kind.get("names")
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _batches(source: Source, batches: Any, classes: dict[str, list[str]]) -> Iterator[RawRow]:
    number = 0
    for batch in batches:
        for value in batch.to_pylist():
            number += 1
            yield RawRow(named(value, classes), source.shown, number, number - 1)


def named(value: dict[str, Any], classes: dict[str, list[str]]) -> dict[str, Any]:
    """A row with the names of its classes in place of their numbers."""
    for name, names in classes.items():
        index = value.get(name)
        if isinstance(index, int):  # -1 stands for no label
            value[name] = names[index] if 0 <= index < len(names) else None
    return value


def _not_arrow(source: Source, kind: str, error: Exception) -> FileProblem:
    return FileProblem(
        f"is not a {kind} file: {str(error).splitlines()[0]}",
        file=source.shown,
        hint="check that the file was downloaded to its end and that its suffix says what it is",
    )
