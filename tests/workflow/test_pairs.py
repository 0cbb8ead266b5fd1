"""Similarity and reranking from shipped recipes to answers, on tiny models: train, prove, ship, ask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from command import says
from luthier.catalog.shipped import shipped_recipe
from tiny_encoders import rows_of, save_tiny_encoder, sentences, write_steps

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(300)]

TEXTS = sentences(90)
FAST = (
    "training.epochs=3", "training.learning_rate=3e-3", "training.batch_size=8", "training.evaluate_every=20",
    "training.sequence_length=24", "model.dtype=float32", "model.revision=null",
)  # fmt: skip


def beir(folder: Path) -> Path:
    """Queries of two words, answered by the sentence that holds them."""
    folder.mkdir()
    rows_of(folder / "corpus.jsonl", [{"_id": f"d{i}", "title": "", "text": TEXTS[i]} for i in range(60)])
    for split, start in (("train", 0), ("test", 40)):
        asked = range(start, start + (40 if split == "train" else 12))
        rows = [{"_id": f"q{i}", "text": " ".join(TEXTS[i].split()[1:3])} for i in asked]
        rows_of(folder / f"queries_{split}.jsonl", rows)
        lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in asked)]
        (folder / f"qrels_{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def the_run(folder: Path) -> Path:
    (path,) = (folder / "runs").iterdir()
    return path


def outcome(folder: Path, name: str) -> Any:
    return json.loads((the_run(folder) / f"{name}.json").read_text())["result"]


def trained(tmp_path: Path, name: str, *more: str) -> None:
    """Train the shipped recipe on the folder's BEIR set."""
    beir(tmp_path / "set")
    (tmp_path / "recipe.yaml").write_text(shipped_recipe(name).path.read_text())
    data = ("data.train=[set/qrels_train.tsv]", "data.test=[set/qrels_test.tsv]")
    says(tmp_path, "train", "recipe.yaml", f"model.id={tmp_path / 'model'}", *data, *FAST, *more)


def test_similarity_from_recipe_to_answer(tmp_path: Path) -> None:
    write_steps(save_tiny_encoder(tmp_path / "model"), query="query: ")
    trained(tmp_path, "similarity-minilm-cpu", "similarity.dimensions=16", "training.micro_batch_size=4")
    (comparison,) = outcome(tmp_path, "comparison")
    assert comparison["primary"] == "ndcg@10"
    assert comparison["differences"][0]["tuned"]["n"] == 12
    (merged,) = [a for a in outcome(tmp_path, "artifacts") if a["kind"] == "merged"]
    assert merged["parity"]["passed"]
    recipe = (the_run(tmp_path) / "recipe.yaml").read_text()
    assert "similarity.loss: the rows are beir" in recipe
    found = json.loads(says(tmp_path, "embed", "latest", TEXTS[0], TEXTS[1], "--json"))
    assert (found["texts"], found["dims"]) == (2, 32)
    says(tmp_path, "evaluate", "latest", "--data", "set/qrels_test.tsv")
    (extra,) = (the_run(tmp_path) / "evaluations").glob("*.json")
    judged = json.loads(extra.read_text())["result"]["tuned"]
    assert judged["settings"]["corpus"] == 60, "later files are answered from their own corpus"
    assert "cross-encoder" not in says(tmp_path, "report", "latest")
    says(tmp_path, "rerank", "latest", "a", "--query", "b", code=2)


def test_labelled_texts_from_recipe_to_answer(tmp_path: Path) -> None:
    save_tiny_encoder(tmp_path / "model")
    words = ("amber", "birch", "cedar")
    rows = [{"text": f"{TEXTS[i]} {words[i % 3]}", "label": words[i % 3]} for i in range(90)]
    rows_of(tmp_path / "rows.jsonl", rows[:60])
    rows_of(tmp_path / "held.jsonl", rows[60:])
    recipe = shipped_recipe("similarity-minilm-cpu").path
    data = (f"model.id={tmp_path / 'model'}", "data.train=rows.jsonl", "data.test=held.jsonl")
    says(tmp_path, "train", str(recipe), *data, *FAST, "training.epochs=8")
    (comparison,) = outcome(tmp_path, "comparison")
    assert comparison["verdict"] == "better"
    resolved = (the_run(tmp_path) / "recipe.yaml").read_text()
    assert "similarity.loss: the rows are labelled" in resolved
    found = json.loads(says(tmp_path, "embed", "latest", *[row["text"] for row in rows[:4]], "--json"))
    assert found["texts"] == 4
    held = rows_of(tmp_path / "more.jsonl", rows[:9])
    assert "ndcg@10" in says(tmp_path, "evaluate", "latest", "--data", str(held))


def test_reranking_from_recipe_to_answer(tmp_path: Path) -> None:
    save_tiny_encoder(tmp_path / "model")
    trained(tmp_path, "reranking-minilm-cpu", "reranking.candidates=10")
    baseline = outcome(tmp_path, "baseline")["test"]
    assert baseline["model"] == "floor: words (BM25)"
    assert baseline["settings"]["candidates"] == "the first 10 of 60 texts by words (BM25)"
    (merged,) = [a for a in outcome(tmp_path, "artifacts") if a["kind"] == "merged"]
    assert merged["parity"]["passed"]
    found = json.loads(says(tmp_path, "rerank", "latest", *TEXTS[:3], "--query", "red ball", "--json"))
    assert len(found["ranking"]) == 3
    assert (the_run(tmp_path) / "report.html").is_file()
