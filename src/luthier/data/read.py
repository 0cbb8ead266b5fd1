"""Files into rows: JSONL, JSON, CSV/TSV, Parquet, Arrow, plain text, plain or compressed.

Rows stream: memory stays bounded for everything but a .json array, which is one value.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from luthier.data.opened import as_file_problem, open_binary, told_encoding
from luthier.data.sources import Source, resolve
from luthier.data.tables import arrow_values, parquet_values
from luthier.errors import DataError, FileProblem, LuthierError

TEXT_ROW_CHARACTERS = 2_000
"""Plain text is cut at the first blank line (or else line end) after this many characters into a row."""

Report = Callable[[LuthierError], None]
"""Told of a broken row, which is then left out. Without one, the first broken row is raised."""

csv.field_size_limit(2**31 - 1)


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
        "parquet": _table,
        "arrow": _table,
    }[source.kind]
    report = on_problem or _raise
    with as_file_problem(source):
        yield from reader(source, report)


def _raise(problem: LuthierError) -> None:
    raise problem


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


def _table(source: Source, report: Report) -> Iterator[RawRow]:  # noqa: ARG001 - one signature for all
    values = parquet_values if source.kind == "parquet" else arrow_values
    for number, value in enumerate(values(source), 1):
        yield RawRow(value, source.shown, number, number - 1)
