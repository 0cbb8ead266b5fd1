"""Rows kept on disk are the rows kept in memory: same splits, tokens, account and digests."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.data.load import LoadedData, load_splits
from luthier.data.passes import Scanned
from luthier.data.scan import Index, Split, _cut, leakage
from luthier.data.splits import choose_digests
from luthier.data.store import LazyRows, row_lengths
from luthier.data.tokenizer import FileTokenizer
from luthier.errors import DataError
from luthier.schema.recipe import Recipe

pytest.importorskip("pyarrow")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rows"


def write(path: Path, count: int, *, seed: int = 0, pairs: bool = False) -> Path:
    draw = random.Random(seed)
    words = [
        "the",
        "weather",
        "in",
        "Rome",
        "is",
        "sunny",
        ",",
        "Paris",
        "is",
        "a",
        "capital",
        "of",
        "France",
        "é",
    ]

    def text(most: int) -> str:
        return " ".join(draw.choice(words) for _ in range(draw.randint(1, most)))

    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            if pairs:
                row: dict[str, Any] = {"prompt": f"{number % (count - 3)} {text(9)}", "completion": text(30)}
            else:
                turns = [{"role": "user", "content": f"{number} {text(9)}"}]
                turns += [{"role": "assistant", "content": text(60)}]
                turns *= draw.choice([1, 1, 2])
                row = {"messages": turns}
            file.write(json.dumps(row, ensure_ascii=draw.random() < 0.5) + "\n")
            if draw.random() < 0.1:
                file.write("\n")
            if draw.random() < 0.05:
                file.write(json.dumps(row) + "\n")
    return path


def load(
    base: Path, tokenizer: FileTokenizer, storage: str, limit: int | None = 60, **data: Any
) -> LoadedData:
    settings = {"model": {"id": "a/b"}, "data": {"over_length": "truncate", **data, "storage": storage}}
    task = settings["data"].pop("task", "chat")
    return load_splits(
        Recipe.model_validate({**settings, "task": task}), tokenizer, base=base, sequence_length=limit
    )


def same(one: LoadedData, other: LoadedData) -> None:
    assert one.report == other.report
    assert one.lengths == other.lengths
    for name in ("train", "validation"):
        ours, theirs = getattr(one.splits, name), getattr(other.splits, name)
        assert len(ours) == len(theirs)
        assert list(row_lengths(ours)) == list(row_lengths(theirs))
        order = np.random.default_rng(0).permutation(len(ours)).tolist()
        for index in order:
            a, b = ours[index], theirs[index]
            assert (a.ids.tolist(), a.trained.tolist()) == (b.ids.tolist(), b.trained.tolist())
            assert (a.file, a.line, a.id) == (b.file, b.line, b.id)
            assert (a.ids.dtype, a.trained.dtype) == (b.ids.dtype, b.trained.dtype)
    assert {name: list(rows) for name, rows in one.splits.tests.items()} == {
        name: list(rows) for name, rows in other.splits.tests.items()
    }


CASES: dict[str, dict[str, Any]] = {
    "cut from train": {"train": "a.jsonl"},
    "dropped rows": {"train": "a.jsonl", "over_length": "drop", "max_rows": 50, "limit": 110},
    "given splits": {
        "train": "a.jsonl",
        "validation": "b.jsonl",
        "test": {"one": "c.jsonl", "two": "b.jsonl"},
    },
    "weights": {"train": [{"path": "a.jsonl", "weight": 2.5}, {"path": "b.jsonl", "weight": 0.4}, "c.jsonl"]},
    "system and last": {"train": "b.jsonl", "system": "Be brief.", "train_on": "last"},
    "group": {"train": "c.jsonl", "columns": {"group": "prompt"}, "format": "prompt-completion"},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("storage", ["cache", "stream"])
def test_rows_on_disk_equal_rows_in_memory(case, storage, tmp_path: Path, make_tokenizer) -> None:
    tokenizer = make_tokenizer("chatml")
    write(tmp_path / "a.jsonl", 90)
    write(tmp_path / "b.jsonl", 30, seed=1)
    write(tmp_path / "c.jsonl", 40, seed=2, pairs=True)
    memory = load(tmp_path, tokenizer, "memory", **CASES[case])
    first = load(tmp_path, tokenizer, storage, processes=1, **CASES[case])
    assert isinstance(first.splits.train, LazyRows)
    same(memory, first)
    same(memory, load(tmp_path, tokenizer, storage, **CASES[case]))
    for split in memory.report.splits:
        assert split.read == split.kept + sum(split.dropped.values())


def test_texts_cut_into_pieces(tmp_path: Path, make_tokenizer) -> None:
    tokenizer = make_tokenizer("chatml")
    rows = [{"text": " ".join(f"word{n}{k}" for k in range(80))} for n in range(30)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [
        load(tmp_path, tokenizer, storage, limit=32, train="t.jsonl", task="text-generation")
        for storage in ("memory", "cache", "stream")
    ]
    same(found[0], found[1])
    same(found[0], found[2])


def test_several_processes_give_the_same_rows(tmp_path: Path, make_tokenizer, monkeypatch) -> None:
    monkeypatch.setattr("luthier.data.chunks.CHUNK_BYTES", 3_000)
    monkeypatch.setattr("luthier.data.scan.PIECE_BYTES", 3_000)
    tokenizer = make_tokenizer("chatml")
    write(tmp_path / "a.jsonl", 90)
    memory = load(tmp_path, tokenizer, "memory", train="a.jsonl")
    same(memory, load(tmp_path, tokenizer, "cache", train="a.jsonl", processes=2))


def test_a_second_start_reads_no_row_and_a_change_is_seen(
    tmp_path: Path, make_tokenizer, own_cache, monkeypatch
) -> None:
    tokenizer = make_tokenizer("chatml")
    path = write(tmp_path / "a.jsonl", 60)
    first = load(tmp_path, tokenizer, "cache", train="a.jsonl", processes=1)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a second start made the rows again")

    with monkeypatch.context() as patch:
        patch.setattr("luthier.data.large.ordered", never)
        patch.setattr("luthier.data.scan.ordered", never)
        same(first, load(tmp_path, tokenizer, "cache", train="a.jsonl", processes=1))
        with pytest.raises(AssertionError):
            load(tmp_path, tokenizer, "cache", train="a.jsonl", processes=1, train_on="last")
    write(path, 61)
    again = load(tmp_path, tokenizer, "cache", train="a.jsonl", processes=1)
    assert again.report.digest != first.report.digest
    assert len([one for one in own_cache.iterdir() if one.is_dir()]) == 2


def test_broken_rows_end_it_with_all_named_and_nothing_kept(
    tmp_path: Path, make_tokenizer, own_cache
) -> None:
    tokenizer = make_tokenizer("chatml")
    path = write(tmp_path / "a.jsonl", 40)
    with path.open("a") as file:
        file.write("no\n" + '{"messages": []}\n' * 7)
    messages = []
    for storage in ("memory", "cache", "stream"):
        with pytest.raises(DataError) as caught:
            load(tmp_path, tokenizer, storage, train="a.jsonl", processes=1)
        messages.append(str(caught.value))
    assert messages[0] == messages[1] == messages[2]
    assert "8 rows cannot be used" in messages[0]
    write(path, 40)
    with pytest.raises(DataError, match="are longer than 20 tokens") as caught:
        load(tmp_path, tokenizer, "cache", limit=20, train="a.jsonl", over_length="error", processes=1)
    with pytest.raises(DataError) as memory:
        load(tmp_path, tokenizer, "memory", limit=20, train="a.jsonl", over_length="error")
    assert (str(caught.value), caught.value.hint) == (str(memory.value), memory.value.hint)
    assert not [one for one in own_cache.iterdir() if one.is_dir()]


def test_rows_changed_under_a_stream_are_refused(tmp_path: Path, make_tokenizer) -> None:
    tokenizer = make_tokenizer("chatml")
    path = write(tmp_path / "a.jsonl", 40)
    found = load(tmp_path, tokenizer, "stream", train="a.jsonl", processes=1)
    path.write_bytes(b"x" + path.read_bytes())
    with pytest.raises(DataError, match="has changed"):
        list(found.splits.train)


def test_millions_of_rows_take_few_bytes_each_while_they_are_cut(own_cache) -> None:
    rows, draw = 400_000, np.random.default_rng(0)
    index = Index()
    for _ in range(4):
        ids = draw.integers(0, 256, (rows // 4, 12), dtype=np.uint8)
        numbers = draw.integers(0, 1 << 63, rows // 4, dtype=np.uint64)
        lines = np.arange(rows // 4)
        found = Scanned(ids.reshape(-1).view("S12"), lines, numbers, numbers, numbers, [], 0)
        index.add(found, file=0)
    tracemalloc.start()
    try:
        index.places = _cut(index, {"test": 0.05, "validation": 0.05}, file="a.jsonl")
        splits = [Split(name, number, (), number > 0, index) for number, name in enumerate("abc")]
        assert leakage(splits) == ({"b": 0, "c": 0}, {"b": 0, "c": 0})
        chosen = choose_digests(index.column("ids"), rows // 2, seed=1)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [len(split.rows()) for split in splits] == [rows * 18 // 20, rows // 20, rows // 20]
    assert len(chosen) == rows // 2
    assert peak / rows < 75
    assert (kept - chosen.nbytes) / rows < 5
    assert not list(own_cache.iterdir())
