"""Rows read again in place, whatever their file: the same rows as in memory, with bounded memory."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest

from luthier.data import again
from luthier.data.again import Again, Packed
from luthier.data.load import LoadedData, load_splits
from luthier.data.read import RawRow, read_file
from luthier.data.sources import Source, source_of
from luthier.data.store import SourceRows
from luthier.data.tokenizer import FileTokenizer
from luthier.errors import DataError, Unsupported
from luthier.schema.recipe import Recipe

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
zstandard = pytest.importorskip("zstandard")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))


def rows(count: int = 120) -> list[dict[str, str]]:
    draw = random.Random(1)
    words = ["sunny", "Größe", "東京", "a, b", 'said "no"', "two\nlines", "end\r\nof", "x"]
    return [
        {"prompt": f"{n} {draw.choice(words)}?", "completion": " ".join(draw.choices(words, k=6))}
        for n in range(count)
    ]


def lines(found: list[dict[str, str]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in found)


def table(found: list[dict[str, str]], delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["prompt", "completion"], delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue().encode()


def frames(raw: bytes, size: int) -> bytes:
    pieces = [raw[at : at + size] for at in range(0, len(raw), size)]
    return b"".join(zstandard.ZstdCompressor().compress(piece) for piece in pieces)


def members(raw: bytes, size: int) -> bytes:
    return b"".join(gzip.compress(raw[at : at + size]) for at in range(0, len(raw), size))


def write(path: Path, found: list[dict[str, str]]) -> Path:
    arrow = pa.Table.from_pylist(found)
    match path.name:
        case "a.jsonl.gz":
            path.write_bytes(gzip.compress(lines(found)))
        case "members.jsonl.gz":
            path.write_bytes(members(lines(found), 1_000))
        case "a.jsonl.zst":
            path.write_bytes(frames(lines(found), 1_000))
        case "a.csv":
            path.write_bytes(table(found, ","))
        case "mark.csv":
            path.write_bytes(b"\xef\xbb\xbf" + table(found, ";"))
        case "a.tsv.gz":
            path.write_bytes(gzip.compress(table(found, "\t")))
        case "a.csv.zst":
            path.write_bytes(frames(table(found, ","), 1_000))
        case "a.parquet":
            pq.write_table(arrow, path, row_group_size=37)
        case "a.arrow":
            with pa.ipc.new_file(str(path), arrow.schema) as file:
                file.write_table(arrow, max_chunksize=37)
    return path


FILES = [
    "a.jsonl.gz", "members.jsonl.gz", "a.jsonl.zst", "a.csv", "mark.csv", "a.tsv.gz", "a.csv.zst",
    "a.parquet", "a.arrow",
]  # fmt: skip


def load(base: Path, tokenizer: FileTokenizer, storage: str, **data: Any) -> LoadedData:
    settings = {"model": {"id": "a/b"}, "data": {"over_length": "truncate", "storage": storage, **data}}
    return load_splits(Recipe.model_validate(settings), tokenizer, base=base, sequence_length=60)


@pytest.mark.parametrize("name", FILES)
def test_streamed_rows_equal_rows_in_memory(name: str, tmp_path: Path, make_tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(again, "_BATCH", 10)
    tokenizer = make_tokenizer("chatml")
    write(tmp_path / name, rows())
    memory = load(tmp_path, tokenizer, "memory", train=name)
    for _ in range(2):  # the second start reads no row to find its places
        stream = load(tmp_path, tokenizer, "stream", train=name, processes=1)
        assert isinstance(stream.splits.train, SourceRows)
        assert stream.report == memory.report
        order = random.Random(0).sample(range(len(memory.splits.train)), len(memory.splits.train))
        for index in order:
            one, other = memory.splits.train[index], stream.splits.train[index]
            assert one.ids.tolist() == other.ids.tolist()
            assert (one.file, one.line, one.id) == (other.file, other.line, other.id)
        assert list(memory.splits.tests["test"]) == list(stream.splits.tests["test"])


@pytest.mark.parametrize("name", FILES)
def test_every_row_from_its_place(name: str, tmp_path: Path) -> None:
    source = source_of(write(tmp_path / name, rows()), name)
    found = list(read_file(source))
    if "jsonl" in name:
        starts = [0]
        for line in lines(rows()).splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
        found = [
            RawRow(row.value, row.file, row.line, start) for row, start in zip(found, starts, strict=False)
        ]
    assert [row.value for row in found] == rows()
    reader = Again([source])
    for row in random.Random(2).sample(found, len(found)):
        assert row.offset is not None
        assert reader.row(0, row.offset, row.line) == row


@pytest.mark.parametrize("kind", [".gz", ".zst"])
def test_any_place_of_a_compressed_file_with_few_marks(kind: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(again, "_MARK_BYTES", 5_000)
    monkeypatch.setattr(again, "_BLOCK", 700)
    monkeypatch.setattr(again, "_PIECE", 900)
    draw = random.Random(3)
    raw = b"".join(b"%d %s" % (draw.randrange(10**9), b"a" * draw.randrange(300)) for _ in range(2_000))
    path = tmp_path / f"a.jsonl{kind}"
    path.write_bytes(gzip.compress(raw) if kind == ".gz" else frames(raw, 20_000))
    with Packed(Source(path, "a", "jsonl", kind), marks=8) as packed:
        stream = io.BufferedReader(packed, 64)
        for _ in range(300):
            place, size = draw.randrange(len(raw)), draw.randrange(2_000)
            stream.seek(place)
            assert stream.read(size) == raw[place : place + size]
        assert len(packed._marks) <= 8 or kind == ".zst"
        assert len(packed._marks) > 4
        stream.seek(len(raw) + 5)
        assert stream.read(1) == b""


def refused(name: str, base: Path, tokenizer: FileTokenizer) -> Unsupported:
    with pytest.raises(Unsupported) as caught:
        load(base, tokenizer, "stream", train=name, processes=1)
    return caught.value


def test_what_cannot_be_streamed_is_refused_with_ways_out(
    tmp_path: Path, make_tokenizer, monkeypatch
) -> None:
    tokenizer = make_tokenizer("chatml")
    (tmp_path / "a.json").write_text(json.dumps(rows()))
    assert "one JSON value" in refused("a.json", tmp_path, tokenizer).message
    raw = lines(rows())
    (tmp_path / "u.jsonl").write_bytes(raw.decode().encode("utf-16"))
    problem = refused("u.jsonl", tmp_path, tokenizer)
    assert "no UTF-8" in problem.message
    assert "storage=cache" in (problem.hint or "")
    monkeypatch.setattr(again, "FRAME_BYTES", 4_000)
    (tmp_path / "one.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(raw))
    problem = refused("one.jsonl.zst", tmp_path, tokenizer)
    assert "a zstd frame" in problem.message
    assert "pzstd" in (problem.hint or "")
    monkeypatch.setattr(again, "GROUP_BYTES", 1_000)
    pq.write_table(pa.Table.from_pylist(rows()), tmp_path / "a.parquet")
    assert "row_group_size" in (refused("a.parquet", tmp_path, tokenizer).hint or "")
    with pa.ipc.new_stream(str(tmp_path / "s.arrow"), pa.Table.from_pylist(rows()).schema) as file:
        file.write_table(pa.Table.from_pylist(rows()))
    assert "streaming form" in refused("s.arrow", tmp_path, tokenizer).message


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.jsonl.gz"])
def test_files_that_change_meanwhile_are_refused(name: str, tmp_path: Path, make_tokenizer) -> None:
    found = load(tmp_path, make_tokenizer("chatml"), "stream", train=str(write(tmp_path / name, rows())))
    assert found.splits.train[0].ids.size
    write(tmp_path / name, rows(119))
    with pytest.raises(DataError, match="has changed"):
        found.splits.train[1]
