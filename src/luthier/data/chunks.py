"""Files in pieces of about a megabyte that other processes can parse, with memory bounded by the piece."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from luthier.data.opened import as_file_problem, open_binary, told_encoding
from luthier.data.read import RawRow, Report, parse_lines, read_file
from luthier.data.sources import Source

CHUNK_BYTES = 1 << 20
"""Short rows take a hundred times their bytes while they are rendered, in each process."""
_ROWS = 1_000


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of one file: whole lines of JSONL as bytes, or rows that are parsed already."""

    file: str
    lines: bytes | None
    first: int = 1
    """Number of the first line."""
    offset: int = 0
    """Byte of the file, decompressed, that ``lines`` begins at."""
    rows: tuple[RawRow, ...] = ()


def chunks(source: Source, report: Report) -> Iterator[Chunk]:
    """A file's rows in order. report: told of rows that cannot be read here; ``parse`` tells of the rest."""
    if source.kind == "jsonl" and _plain_lines(source):
        with as_file_problem(source):
            yield from _lines(source)
        return
    rows = read_file(source, on_problem=report)
    while part := tuple(islice(rows, _ROWS)):
        yield Chunk(source.shown, None, rows=part)


def parse(chunk: Chunk, report: Report) -> Iterator[RawRow]:
    """The rows of a chunk."""
    if chunk.lines is None:
        return iter(chunk.rows)
    return parse_lines(chunk.lines, chunk.first, chunk.file, report)


def _plain_lines(source: Source) -> bool:
    """Whether a file is UTF-8 whose lines end with LF (old line ends and UTF-16 take the slow way)."""
    with as_file_problem(source), open_binary(source) as stream:
        head = stream.read(1 << 16)
    return told_encoding(head[:4]) in (None, "utf-8-sig") and (b"\n" in head or b"\r" not in head)


def _lines(source: Source) -> Iterator[Chunk]:
    first, offset = 1, 0
    with open_binary(source) as stream:
        while block := stream.read(CHUNK_BYTES):
            if not block.endswith(b"\n"):
                block += stream.readline()
            size = len(block)
            if first == 1 and offset == 0:
                block = block.removeprefix(codecs.BOM_UTF8)
            start = offset + size - len(block)
            yield Chunk(source.shown, block, first, start)
            first, offset = first + block.count(b"\n"), offset + size
