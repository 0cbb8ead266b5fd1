"""Any sane file in; anything else refused with file and line."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest

from luthier.data.read import read_rows
from luthier.data.sources import resolve
from luthier.errors import DataError, FileProblem, LuthierError

ROWS = [{"prompt": "a\u2028b", "completion": 'é, "q"\n2'}, {"prompt": "c", "completion": "d"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def values(base: Path, *sources: str) -> list[dict]:
    return [row.value for row in read_rows(sources, base=base)]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.jsonl", LINES.replace("\n", "\r\n")),
        ("a.jsonl", "\n" + LINES.rstrip("\n") + "\n\n  \n"),
        ("a.jsonl", LINES.encode("utf-8-sig")),
        ("a.jsonl", LINES.encode("utf-16")),
        ("a.ndjson", LINES),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("a.JSON", json.dumps(ROWS)),
        ("a.json", LINES),
        ("a.json", json.dumps({"version": 1, "data": ROWS})),
        ("a.json", json.dumps({key: [row[key] for row in ROWS] for key in ROWS[0]})),
        ("a.json.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0)),
        ("a.jsonl", LINES.replace("\n", "\r")),
        ("a.jsonl", LINES.encode("utf-16-le")),
        ("a.jsonl", LINES.encode("utf-16-be")),
        ("a.jsonl", gzip.compress(LINES.encode(), mtime=0)),
    ],
)
def test_json_in_all_its_forms(tmp_path: Path, name: str, content: str | bytes) -> None:
    write(tmp_path / name, content)
    assert values(tmp_path, name) == ROWS


@pytest.mark.parametrize(
    ("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t")]
)
def test_csv_with_quotes_and_line_ends(tmp_path: Path, name: str, delimiter: str) -> None:
    with (tmp_path / name).open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)
    rows = list(read_rows((name,), base=tmp_path))
    assert [row.value for row in rows] == ROWS
    assert [row.line for row in rows] == [2, 4]


def test_parquet_and_arrow(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    feather, ipc, parquet = (pytest.importorskip(f"pyarrow.{name}") for name in ("feather", "ipc", "parquet"))

    table = pyarrow.Table.from_pylist(ROWS)
    parquet.write_table(table, tmp_path / "a.parquet")
    feather.write_feather(table, str(tmp_path / "b.feather"))
    with ipc.new_stream(str(tmp_path / "c.arrow"), table.schema) as stream:
        stream.write_table(table)
    for name in ("a.parquet", "b.feather", "c.arrow"):
        assert values(tmp_path, name) == ROWS
    write(tmp_path / "d.parquet", "no")
    with pytest.raises(FileProblem, match="not a Parquet file"):
        values(tmp_path, "d.parquet")
    write(tmp_path / "d.arrow", "no")
    with pytest.raises(FileProblem, match="not a Arrow file"):
        values(tmp_path, "d.arrow")


def test_zstandard(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    packed = zstandard.ZstdCompressor().compress(LINES.encode())
    write(tmp_path / "a.jsonl.zst", packed)
    assert values(tmp_path, "a.jsonl.zst") == ROWS
    write(tmp_path / "b.jsonl.zst", b"\x28\xb5\x2f\xfd" + b"\xff" * 30)
    with pytest.raises(FileProblem, match="cannot be read"):
        values(tmp_path, "b.jsonl.zst")


def test_plain_text_is_cut_at_blank_lines_and_loses_nothing(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {n}. " + "words " * 120 for n in range(20)]
    write(tmp_path / "a.txt", "\n\n".join(paragraphs))
    rows = list(read_rows(("a.txt",), base=tmp_path))
    assert 4 <= len(rows) <= 9
    assert "\n\n".join(row.value["text"] for row in rows) == "\n\n".join(paragraphs)
    assert rows[1].value["text"].startswith("Paragraph")
    assert rows[1].line > 1


def test_zstd_reads_all_frames_and_says_where_it_is_cut(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    packer = zstandard.ZstdCompressor()
    one = packer.compress(LINES.encode() * 5_000)
    write(tmp_path / "a.jsonl.zst", one + packer.compress(LINES.encode()))
    assert values(tmp_path, "a.jsonl.zst") == ROWS * 5_001
    for name, lost in (("b.jsonl.zst", 5), ("c.jsonl.zst", len(one) // 2)):
        write(tmp_path / name, one[:-lost])
        with pytest.raises(FileProblem, match="cannot be read: the compressed data end too early"):
            values(tmp_path, name)
    write(tmp_path / "d.jsonl.zst", one[:100] + b"no" * 400)
    with pytest.raises(FileProblem, match="cannot be read"):
        values(tmp_path, "d.jsonl.zst")


def test_each_broken_row_is_told_and_the_others_are_kept(tmp_path: Path) -> None:
    cases = {
        "a.csv": b"a,b\n1,2\ncaf\xe9,2\n3\n5,6\n",
        "b.jsonl": b'{"a": "1", "b": "2"}\n{"a": "caf\xe9"}\n[]\n{"a": "5", "b": "6"}\n',
        "c.jsonl": b'{"a": "1", "b": "2"}\n{"a": ' + b"1" * 5_000 + b'}\n{\n{"a": "5", "b": "6"}\n',
    }
    for name, content in cases.items():
        write(tmp_path / name, content)
        problems: list[LuthierError] = []
        kept = [row.value for row in read_rows((name,), base=tmp_path, on_problem=problems.append)]
        assert kept == [{"a": "1", "b": "2"}, {"a": "5", "b": "6"}]
        assert [problem.where for problem in problems] == (
            [f"{name}:3", f"{name}:4"] if name == "a.csv" else [f"{name}:2", f"{name}:3"]
        )


def test_half_a_utf_16_file_is_said(tmp_path: Path) -> None:
    for name, content in (("a.jsonl", LINES), ("a.csv", "a,b\n1,2\n")):
        write(tmp_path / name, content.encode("utf-16")[:-1])
        with pytest.raises(DataError, match="broken UTF-16"):
            values(tmp_path, name)


def test_tables_of_pandas_and_datasets(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    write(tmp_path / "a.csv", ",text,label\n0,Hello,1\n")
    assert values(tmp_path, "a.csv") == [{"index": "0", "text": "Hello", "label": "1"}]
    table = pyarrow.Table.from_pylist([{"text": "a", "label": 1}, {"text": "b", "label": -1}])
    features = {"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    parquet.write_table(table, tmp_path / "b.parquet")
    assert values(tmp_path, "b.parquet") == [{"text": "a", "label": "yes"}, {"text": "b", "label": None}]


def test_folders_globs_and_names_twice(tmp_path: Path) -> None:
    for name in ("b/train.jsonl", "b/more/train-2.jsonl", "b/validation.jsonl", "b/.hidden.jsonl"):
        write(tmp_path / name, LINES)
    write(tmp_path / "b/README.md", "# hello")
    write(tmp_path / "b/labels.json", "[]")
    found = resolve(("b", "b/*.jsonl"), base=tmp_path)
    assert [file.shown for file in found.files] == [
        "b/more/train-2.jsonl",
        "b/train.jsonl",
        "b/validation.jsonl",
    ]
    assert "left aside validation.jsonl" in found.notes[0]
    assert [file.shown for file in resolve(("b/**/train*.jsonl",), base=tmp_path).files] == [
        "b/more/train-2.jsonl",
        "b/train.jsonl",
    ]


@pytest.mark.parametrize(
    ("name", "content", "error", "words", "where", "hint"),
    [
        ("a.jsonl", LINES + '{"prompt": "x",\n', DataError, "broken JSON at column", "a.jsonl:3", "mend"),
        ("a.jsonl", "{'prompt': 1}\n", DataError, "broken JSON", "a.jsonl:1", "json.dumps"),
        ("a.jsonl", "[\n{}\n]", DataError, "broken JSON", "a.jsonl:1", ".json"),
        ("a.jsonl", '{\n  "a": 1}\n', DataError, "broken JSON", "a.jsonl:1", ".json"),
        ("a.jsonl", "[1]\n", DataError, "is a list, not a JSON object", "a.jsonl:1", "named fields"),
        ("a.jsonl", LINES + "null", DataError, "is null", "a.jsonl:3", None),
        (
            "a.jsonl",
            LINES.encode() + b'{"a": "caf\xe9"}',
            DataError,
            "not UTF-8: byte 0xe9",
            "a.jsonl:3",
            "iconv",
        ),
        ("a.jsonl", "[" * 100_000, DataError, "nested too deeply", "a.jsonl:1", None),
        ("a.jsonl", "", DataError, "empty", "a.jsonl", None),
        ("a.jsonl", "\n \n", DataError, "empty", "a.jsonl", None),
        ("a.json", "[]", DataError, "empty", "a.json", None),
        ("a.json", "3", FileProblem, "no list of rows", "a.json", "array"),
        ("a.json", '[{"a": 1},\n{"b"}]', DataError, "broken JSON", "a.json:2", None),
        ("a.json", '[{"a": 1}, 2]', DataError, "is a number", "a.json:2", None),
        ("a.csv", "a,b\n1,2\n3\n", DataError, "has 1 fields where the header names 2", "a.csv:3", "quotes"),
        ("a.csv", 'a,b\n1,"2\n', DataError, "broken CSV", "a.csv:2", "quotes"),
        ("a.csv", "a,a\n1,2\n", FileProblem, "name the columns", "a.csv:1", None),
        ("a.csv", "a,b\n", DataError, "empty", "a.csv", None),
        ("a.csv", b"a,b\n1,2\n\xff,2\n", DataError, "not UTF-8", "a.csv:3", "iconv"),
        ("a.jsonl.gz", LINES, FileProblem, "cannot be read", "a.jsonl.gz", None),
        (
            "a.jsonl.gz",
            gzip.compress(LINES.encode() * 9, mtime=0)[:-12],
            FileProblem,
            "cannot be read",
            "a.jsonl.gz",
            None,
        ),
        ("a.docx", "x", FileProblem, "unknown kind of file: .docx", "a.docx", ".jsonl"),
    ],
)
def test_bad_files(name, content, error, words, where, hint, tmp_path: Path) -> None:  # noqa: PLR0917
    write(tmp_path / name, content)
    with pytest.raises(error, match=words) as caught:
        values(tmp_path, name)
    assert caught.value.where == where
    assert hint is None or hint in (caught.value.hint or "")


def test_missing_files_name_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", LINES)
    (tmp_path / "empty").mkdir()
    for source, words, hint in (
        ("trian.jsonl", "no such file", "train.jsonl"),
        ("*.csv", "no file matches", ""),
        ("empty", "no data file", ""),
    ):
        with pytest.raises(FileProblem, match=words) as caught:
            values(tmp_path, source)
        assert hint in (caught.value.hint or "")
        assert caught.value.where == source


def test_broken_rows_can_be_collected_instead(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", b'{"a": 1}\n{"a"\n3\n{"a": "\xff"}\n{"a": 2}\n')
    problems: list[LuthierError] = []
    rows = list(read_rows(("a.jsonl",), base=tmp_path, on_problem=problems.append))
    assert [row.value["a"] for row in rows] == [1, 2]
    assert [problem.line for problem in problems] == [2, 3, 4]


def test_json_lines_stream(tmp_path: Path) -> None:
    """The first row is there before the rest is read: a file far larger than memory will do."""
    write(tmp_path / "a.jsonl", LINES + "{broken")
    rows = read_rows(("a.jsonl",), base=tmp_path)
    assert next(rows).value == ROWS[0]
