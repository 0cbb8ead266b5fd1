"""The commands that write data files, as a person calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.cli.main import main


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["data", *words])
    return int(left.value.code or 0)


def test_split_says_how_and_writes(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"text number {n}", "label": "ab"[n % 2]} for n in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert call("split", "a.jsonl") == 2
    assert "--to FOLDER" in capsys.readouterr().err
    assert call("split", "a.jsonl", "--dry-run", "--json") == 0
    dry = json.loads(capsys.readouterr().out)
    assert [part["rows"] for part in dry["parts"]] == [36, 4]
    assert call("split", "a.jsonl", "--to", "out", "--test", "0.25", "--validation", "0.25") == 0
    said = capsys.readouterr().out
    assert "40 read = 20 train + 10 test + 10 validation" in said
    assert len((tmp_path / "out" / "validation.jsonl").read_text().splitlines()) == 10
    assert call("split", "a.jsonl", "--dry-run", "--test", "0") == 2


def test_mine_pairs_and_a_retrieval_set(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    animals = ["cat", "dog", "horse", "whale", "mouse"]
    corpus = [{"_id": a, "title": a, "text": f"The {a} eats what a {a} finds."} for a in animals]
    queries = [{"_id": f"q{a}", "text": f"What eats the {a} and the mouse?"} for a in animals[:3]]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    judged = "".join(f"q{a}\t{a}\t1\n" for a in animals[:3])
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged + "lost\tcat\t1\n")
    words = ["corpus.jsonl", "queries.jsonl", "qrels.tsv", "--to", "m.jsonl", "--negatives", "2", "--json"]
    assert call("mine", *words, "--most-of-positive", "1.5") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["queries"], report["corpus"]) == (3, 5)
    assert "1 judgements name" in report["notes"][0]
    mined = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert len(mined) == 3
    for row, animal in zip(mined, animals, strict=False):
        assert row["positive"] == f"The {animal} eats what a {animal} finds."
        assert row["positive"] not in row["negatives"]
        assert any("mouse" in text for text in row["negatives"])
    (tmp_path / "pairs.jsonl").write_text('{"query": "a cat", "positive": ""}\n')
    assert call("mine", "pairs.jsonl", "--to", "m.jsonl") == 4
    assert "pairs.jsonl:1" in capsys.readouterr().err
