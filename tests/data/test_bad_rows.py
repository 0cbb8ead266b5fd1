"""Rows that no classifier, embedder or reranker can learn from are refused with file, line and a way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from encoders import save_tokenizer
from luthier.data.inputs import check_labels, load_inputs
from luthier.data.tokenizer import load_tokenizer
from luthier.errors import DataError
from luthier.planning.pairs import settle_pairs
from luthier.schema.recipe import Recipe
from tiny_encoders import rows_of

ONE, MANY = "multi-class-classification", "multi-label-classification"
LABELLED = [{"text": f"cat {n}", "label": "animal" if n % 2 else "colour"} for n in range(30)]
TAGGED = [{"text": f"cat {n}", "labels": ["animal"] if n % 2 else ["colour", "food"]} for n in range(30)]
PAIRED = [{"query": f"cat {n}", "positive": f"dog {n}", "negatives": [f"hen {n}"]} for n in range(30)]
SCORED = [{"sentence1": f"cat {n}", "sentence2": f"dog {n}", "score": n % 6} for n in range(30)]
Rows = list[dict[str, Any]]


def loaded(folder: Path, task: str, rows: Rows, test: Rows | None = None, **section: Any) -> Recipe:
    """A recipe over these rows as planning settles it."""
    save_tokenizer(folder / "model", around=True)
    data = {"train": str(rows_of(folder / "rows.jsonl", rows))}
    if test is not None:
        data["test"] = str(rows_of(folder / "held.jsonl", test))
    own = {task: section} if section else {}
    recipe = Recipe.model_validate(
        {
            "task": task,
            "model": {"id": str(folder / "model")},
            "method": {"name": "full"},
            "data": data,
            **own,
        }
    )
    found = load_inputs(recipe, load_tokenizer(folder / "model"), base=folder, sequence_length=32)
    if task in (ONE, MANY):
        check_labels(recipe, found.splits, found.report)
    return settle_pairs(recipe, found.splits.train, found.splits.kind, validation=found.splits.validation)


def changed(rows: Rows, **values: Any) -> Rows:
    """The rows with the eighth changed."""
    return [*rows[:7], {**rows[7], **values}, *rows[8:]]


CASES: list[tuple[str, Rows, dict[str, Any], str, str]] = [
    (ONE, LABELLED, {"test": [{"text": "a", "label": "anima"}]}, "held.jsonl:1", "did you mean animal"),
    (MANY, TAGGED, {"test": [{"text": "a", "labels": ["fish"]}]}, "held.jsonl:1", "add training rows"),
    (ONE, [{**row, "label": "same"} for row in LABELLED], {}, "rows.jsonl", "at least two classes"),
    (ONE, changed(LABELLED, label=None), {}, "rows.jsonl:8", "label"),
    (ONE, changed(LABELLED, text=" "), {}, "rows.jsonl:8", "text"),
    (MANY, [{**row, "labels": []} for row in TAGGED], {}, "rows.jsonl", "label columns hold 0 or 1"),
    ("similarity", changed(PAIRED, query=""), {}, "rows.jsonl:8", "query"),
    ("similarity", changed(PAIRED, positive=" "), {}, "rows.jsonl:8", "positive"),
    ("reranking", changed(PAIRED, negatives=["hen", " "]), {}, "rows.jsonl:8", "is empty"),
    ("reranking", changed(PAIRED, negatives=["dog 7"]), {}, "rows.jsonl:8", "positive and negative at once"),
    ("similarity", changed(SCORED, sentence2=""), {}, "rows.jsonl:8", "sentence2"),
    ("similarity", changed(SCORED, score="high"), {}, "rows.jsonl:8", "no number"),
    ("reranking", changed(SCORED, score=-2), {"loss": "lambda"}, "rows.jsonl:8", "outside a relevance grade"),
    ("reranking", SCORED, {"loss": "lambda"}, "rows.jsonl", "every query has only one"),
    ("reranking", PAIRED, {"loss": "list-net", "negatives": 0}, "rows.jsonl", "data mine"),
    ("similarity", changed(LABELLED, text=" "), {}, "rows.jsonl:8", "text"),
    ("similarity", changed(LABELLED, label=" "), {}, "rows.jsonl:8", "there is no label"),
    ("similarity", [{**row, "label": "same"} for row in LABELLED], {}, "rows.jsonl", "at least two labels"),
    (
        "similarity",
        [{**row, "label": row["text"]} for row in LABELLED],
        {},
        "rows.jsonl",
        "no two of",
    ),
    ("similarity", changed(SCORED, score=-2), {"loss": "cosine"}, "rows.jsonl:8", "set score_range"),
]


@pytest.mark.parametrize("case", CASES)
def test_a_bad_row_is_told_with_its_place_and_a_way_out(
    tmp_path: Path, case: tuple[str, Rows, dict[str, Any], str, str]
) -> None:
    task, rows, more, where, words = case
    with pytest.raises(DataError) as caught:
        loaded(tmp_path, task, rows, **more)
    said = f"{caught.value} {caught.value.hint}"
    assert where in said
    assert words in said


def test_validation_rows_must_compare_texts_too(tmp_path: Path) -> None:
    """Several scored texts a query to train on, one each to validate on: refused before anything starts."""
    save_tokenizer(tmp_path / "model", around=True)
    rows = [{"query": f"cat {n // 3}", "document": f"dog {n}", "score": n % 3} for n in range(30)]
    lone = [{"query": f"cow {n}", "document": f"hen {n}", "score": 1} for n in range(4)]
    data = {
        "train": str(rows_of(tmp_path / "rows.jsonl", rows)),
        "validation": str(rows_of(tmp_path / "lone.jsonl", lone)),
    }
    recipe = Recipe.model_validate(
        {
            "task": "reranking",
            "model": {"id": "m"},
            "method": {"name": "full"},
            "data": data,
            "reranking": {"loss": "lambda"},
        }
    )
    found = load_inputs(recipe, load_tokenizer(tmp_path / "model"), base=tmp_path, sequence_length=32).splits
    assert settle_pairs(recipe, found.train, found.kind).reranking is not None
    with pytest.raises(DataError, match="every query has only one") as caught:
        settle_pairs(recipe, found.train, found.kind, validation=found.validation)
    assert "lone.jsonl:1" in str(caught.value)


def test_a_query_that_is_its_own_positive_is_told(tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "model", around=True)
    rows = rows_of(tmp_path / "rows.jsonl", changed(PAIRED, positive="cat 7 "))
    data = {"train": str(rows), "validation_share": 0, "test_share": 0}
    recipe = Recipe.model_validate(
        {"task": "similarity", "model": {"id": "m"}, "method": {"name": "full"}, "data": data}
    )
    found = load_inputs(recipe, load_tokenizer(tmp_path / "model"), base=tmp_path, sequence_length=32)
    told = [note for note in found.report.notes if "its own positive" in note]
    assert len(told) == 1
    assert "1 training rows" in told[0]
    assert "rows.jsonl:8)" in told[0]


def test_a_positive_named_twice_counts_once(tmp_path: Path) -> None:
    rows = [{"query": f"cat {n}", "positive": [f"dog {n}", f"dog {n}"]} for n in range(30)]
    save_tokenizer(tmp_path / "model", around=True)
    data = {"train": str(rows_of(tmp_path / "rows.jsonl", rows))}
    recipe = Recipe.model_validate(
        {"task": "similarity", "model": {"id": "m"}, "method": {"name": "full"}, "data": data}
    )
    found = load_inputs(recipe, load_tokenizer(tmp_path / "model"), base=tmp_path, sequence_length=32)
    assert all(len(row.positives) == 1 for row in found.splits.train)
