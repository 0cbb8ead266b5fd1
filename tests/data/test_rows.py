"""Files of every task become typed rows, each row is accounted for, and wrong keys are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.data.rows import alike_of, load_rows, retrieval_of, rows_for
from luthier.errors import DataError, LuthierError, RecipeError
from luthier.schema.recipe import DataChoice, Recipe
from luthier.schema.rows import LabelRow, PairRow, PreferenceRow, RankingRow, TaskRows

ONE, MANY = "multi-class-classification", "multi-label-classification"


def write(path: Path, rows: list[dict[str, Any]] | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def read(
    base: Path, purpose: Any, rows: list[dict[str, Any]] | str, name: str = "a.jsonl", **data: Any
) -> TaskRows:
    write(base / name, rows)
    return rows_for(purpose, DataChoice.model_validate({"train": name, **data}), (name,), base=base)


@pytest.mark.parametrize(
    ("purpose", "rows", "labels", "all_labels"),
    [
        (ONE, [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}], [("x",), ("y",)], ("x", "y")),
        (ONE, [{"text": "a", "label": 10}, {"text": "b", "label": 9.0}], [("10",), ("9",)], ("9", "10")),
        (ONE, [{"text": "a", "labels": ["x"]}, {"text": "b", "labels": ["y"]}], [("x",), ("y",)], ("x", "y")),
        (
            MANY,
            [{"text": "a", "labels": ["x", "y"]}, {"text": "b", "labels": []}],
            [("x", "y"), ()],
            ("x", "y"),
        ),
        (MANY, [{"text": "a", "labels": "x|y"}, {"text": "b", "labels": ""}], [("x", "y"), ()], ("x", "y")),
        (MANY, [{"text": "a", "tags": "x, y"}, {"text": "b", "tags": "y"}], [("x", "y"), ("y",)], ("x", "y")),
        (
            MANY,
            [{"text": "a", "labels": "['x', 'y']"}, {"text": "b", "labels": '["y"]'}],
            [("x", "y"), ("y",)],
            ("x", "y"),
        ),
        (
            MANY,
            [
                {"id": 1, "text": "a", "toxic": 1, "insult": 0},
                {"id": 0, "text": "b", "toxic": "0", "insult": "0"},
            ],
            [("toxic",), ()],
            ("toxic", "insult"),
        ),
    ],
)
def test_labels_in_every_form(
    tmp_path: Path, purpose: str, rows: list, labels: list, all_labels: tuple
) -> None:
    found = read(tmp_path, purpose, rows)
    assert all(isinstance(row, LabelRow) for row in found.rows)
    assert [row.labels for row in found.rows] == labels
    assert found.labels == all_labels
    assert (found.read, found.kept, found.dropped) == (2, 2, {})


def test_pairs_under_a_label_and_mapped_columns(tmp_path: Path) -> None:
    (row,) = read(tmp_path, ONE, [{"premise": "p", "hypothesis": "h", "label": "neutral"}]).rows
    assert (row.text, row.pair, row.labels) == ("p", "h", ("neutral",))
    mapped = {"text": "{title}: {body.text}", "label": "meta.topics[0]"}
    (row,) = read(
        tmp_path, ONE, [{"title": "T", "body": {"text": "B"}, "meta": {"topics": ["x"]}}], columns=mapped
    ).rows
    assert (row.text, row.labels) == ("T: B", ("x",))
    hot = read(tmp_path, MANY, "text,a,b,note\nhello,1,0,0\n", "a.csv", columns={"labels": "a, b"})
    assert hot.labels == ("a", "b")
    split = read(tmp_path, MANY, [{"text": "t", "labels": "x/y"}], label_delimiter="/")
    assert split.rows[0].labels == ("x", "y")


@pytest.mark.parametrize(
    ("row", "kind", "positives", "negatives"),
    [
        ({"anchor": "q", "positive": "p"}, "pairs", ("p",), ()),
        ({"question": "q", "answer": "p"}, "pairs", ("p",), ()),
        ({"anchor": "q", "positive": "p", "negative": "n"}, "triplets", ("p",), ("n",)),
        (
            {"query": "q", "pos": ["p", "o"], "neg": ["n", "m"]},
            "query-positives-negatives",
            ("p", "o"),
            ("n", "m"),
        ),
        (
            {"query": "q", "positive": "p", "negative_1": "n", "negative_2": "m"},
            "query-positives-negatives",
            ("p",),
            ("n", "m"),
        ),
        (
            {"query": "q", "positive_passages": [{"title": "T", "text": "p"}], "negative_passages": []},
            "query-positives-negatives",
            ("T p",),
            (),
        ),
    ],
)
def test_rankings_in_every_form(
    tmp_path: Path, row: dict, kind: str, positives: tuple, negatives: tuple
) -> None:
    for purpose in ("similarity", "reranking"):
        found = read(tmp_path, purpose, [row])
        (one,) = found.rows
        assert isinstance(one, RankingRow)
        assert (found.kind, one.query, one.positives, one.negatives) == (kind, "q", positives, negatives)


def test_scored_pairs(tmp_path: Path) -> None:
    text = "sentence1\tsentence2\tscore\na\tb\t2.5\nc\td\t0\ne\tf\thigh\n"
    write(tmp_path / "a.tsv", text)
    problems: list[LuthierError] = []
    found = rows_for(
        "similarity", DataChoice(train=("a.tsv",)), ("a.tsv",), base=tmp_path, on_problem=problems.append
    )
    assert [(row.first, row.second, row.score) for row in found.rows if isinstance(row, PairRow)] == [
        ("a", "b", 2.5),
        ("c", "d", 0),
    ]
    assert (found.read, found.kept, found.dropped) == (3, 2, {"bad-score": 1})
    assert problems[0].where == "a.tsv:4"


def test_labelled_texts_of_similarity(tmp_path: Path) -> None:
    rows = [{"text": f"{label} {n}", "label": label} for n in range(3) for label in ("cat", "dog")]
    found = read(tmp_path, "similarity", [*rows, {"text": "a hen", "label": "hen"}])
    assert (found.kind, found.labels) == ("labelled", ("cat", "dog", "hen"))
    assert found.notes == ("texts with the same label are taken to be alike",)
    held = alike_of(found.rows)
    assert held is not None
    assert held.among
    assert len(held.corpus) == 7
    assert sorted(held.queries.values()) == sorted(row["text"] for row in rows), "the hen has no other"
    one = next(name for name, text in held.queries.items() if text == "cat 1")
    relevant = held.relevance[one]
    assert {held.corpus[name] for name in relevant} == {"cat 0", "cat 2"}
    assert (len(relevant), relevant.get(one)) == (2, None)
    assert alike_of(found.rows[-1:]) is None
    named = [{"words": "a", "kind": 3}]
    mapped = read(tmp_path, "similarity", named, columns={"text": "words", "label": "kind"})
    assert (mapped.kind, mapped.labels) == ("labelled", ("3",))
    for wrong, words in (
        ([{"premise": "a", "hypothesis": "b", "label": "no"}], "cannot tell"),
        ([{"query": "a", "text": "b", "label": "no"}], "cannot tell"),
        ([{"text": "a", "label": ["x", "y"]}], "keep one label a row"),
    ):
        with pytest.raises(DataError) as caught:
            read(tmp_path, "similarity", wrong)
        assert words in f"{caught.value} {caught.value.hint}"
    with pytest.raises(DataError, match="cannot tell the reranking rows"):
        read(tmp_path, "reranking", rows)
    write(tmp_path / "pairs.jsonl", [{"anchor": "a", "positive": "b"}])
    with pytest.raises(DataError, match="labelled rows stand beside pairs"):
        rows_for(
            "similarity", DataChoice(train=("x",)), ("pairs.jsonl", "a.jsonl"), base=tmp_path,
            on_problem=lambda _: None,
        )  # fmt: skip


def test_preferences_in_every_form(tmp_path: Path) -> None:
    asked, good, bad = (
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "G"},
        {"role": "assistant", "content": "B"},
    )
    forms: list[dict[str, Any]] = [
        {"prompt": "Q", "chosen": "G", "rejected": "B"},
        {"prompt": [asked], "chosen": [good], "rejected": [bad]},
        {"prompt": "Q", "chosen": [asked, good], "rejected": [asked, bad]},
        {"chosen": [asked, good], "rejected": [asked, bad]},
        {"chosen": "\n\nHuman: Q\n\nAssistant: G", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
        {"prompt": "Q", "chosen": good, "rejected": bad},
    ]
    ids = set()
    for form in forms:
        (row,) = read(tmp_path, "preference", [form]).rows
        assert isinstance(row, PreferenceRow)
        assert (row.prompt, row.chosen, row.rejected) == ([asked], [good], [bad])
        ids.add(row.id)
    assert len(ids) == 1
    for wrong, words in (
        ({"prompt": "Q", "chosen": "G", "rejected": "G"}, "the same"),
        ({"chosen": "G", "rejected": "B"}, "no prompt"),
        ({"prompt": "Q", "chosen": " ", "rejected": "B"}, "empty"),
    ):
        with pytest.raises(DataError, match=words):
            read(tmp_path, "preference", [wrong])


def beir(folder: Path) -> Path:
    write(folder / "corpus.jsonl", [{"_id": f"d{n}", "title": "T", "text": f"text {n}"} for n in range(6)])
    write(folder / "queries.jsonl", [{"_id": f"q{n}", "text": f"query {n}"} for n in range(4)])
    write(
        folder / "qrels" / "train.tsv",
        "query-id\tcorpus-id\tscore\nq0\td0\t1\nq0\td1\t2\nq0\td2\t0\nq1\td3\t1\nq9\td3\t1\n",
    )
    write(folder / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\nq2\td4\t1\nq3\td5\t0\n")
    return folder


def test_beir_folders(tmp_path: Path) -> None:
    beir(tmp_path / "set")
    problems: list[LuthierError] = []
    found = rows_for(
        "reranking", DataChoice(train=("set",)), ("set",), base=tmp_path, on_problem=problems.append
    )
    assert [(row.query, row.positives, row.negatives) for row in found.rows] == [
        ("query 0", ("T text 0", "T text 1"), ("T text 2",)),
        ("query 1", ("T text 3",), ()),
    ]
    assert (found.kind, found.read, found.kept, found.dropped) == ("beir", 5, 4, {"unknown-query": 1})
    assert problems[0].where == "set/qrels/train.tsv:6"
    test = rows_for("similarity", DataChoice(train=("set",)), ("set",), base=tmp_path, split="test")
    assert test.retrieval is not None
    assert (len(test.retrieval.corpus), test.retrieval.relevance) == (6, {"q2": {"d4": 1}, "q3": {"d5": 0}})
    by_file = rows_for("similarity", DataChoice(train=("x",)), ("set/qrels/test.tsv",), base=tmp_path)
    assert by_file.rows == test.rows
    with pytest.raises(DataError, match="no judgements for validation"):
        rows_for("similarity", DataChoice(train=("set",)), ("set",), base=tmp_path, split="validation")


@pytest.mark.parametrize(
    ("columns", "words", "hint"),
    [
        ({"lable": "label"}, "columns.lable is not a role", "did you mean label"),
        ({"text": "txt"}, "no column 'txt'", "did you mean text"),
        ({"label": "label", "labels": "label"}, "both label and labels", "keep one"),
        ({"completion": "label"}, "columns.completion is not a role", "roles are text"),
    ],
)
def test_wrong_keys_are_refused_with_the_nearest(
    tmp_path: Path, columns: dict, words: str, hint: str
) -> None:
    with pytest.raises(LuthierError, match=words) as caught:
        read(tmp_path, ONE, [{"text": "a", "label": "x"}], columns=columns)
    assert hint in (caught.value.hint or "")


def test_what_cannot_be_told_shows_a_mapping(tmp_path: Path) -> None:
    for purpose, example in (
        (ONE, "{text: YOUR_COLUMN"),
        (MANY, "toxic, insult"),
        ("similarity", "first: YOUR"),
        ("preference", "chosen:"),
    ):
        with pytest.raises(DataError, match="cannot tell") as caught:
            read(tmp_path, purpose, [{"foo": "a", "bar": "b"}])
        assert example in (caught.value.hint or "")
    with pytest.raises(RecipeError, match="names both"):
        read(tmp_path, "similarity", [{"a": "1", "b": "2"}], columns={"query": "a", "first": "b"})


def test_splits_keep_texts_apart_and_count_weights(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "label": "xy"[n % 2]} for n in range(40)]
    write(tmp_path / "a.jsonl", rows)
    write(tmp_path / "b.jsonl", [{"text": f"u{n}", "label": "x"} for n in range(40)])
    write(tmp_path / "test.jsonl", [{"text": "t0", "label": "y"}, {"text": "new", "label": "z"}])
    data = {
        "train": [{"path": "a.jsonl", "weight": 2}, {"path": "b.jsonl", "weight": 0.5}],
        "test": "test.jsonl",
    }
    recipe = Recipe.model_validate({"model": {"id": "a/b"}, "task": ONE, "data": data})
    found = load_rows(recipe, base=tmp_path)
    train = found.report.split("train")
    counts = {row.text: 0 for row in found.train if isinstance(row, LabelRow)}
    for row in found.train:
        counts[row.text] += 1
    assert set(counts.values()) == {1, 2}
    assert all(count == (2 if text.startswith("t") else 1) for text, count in counts.items())
    assert train.read == train.kept + sum(train.dropped.values())
    assert train.kept + train.copies == len(found.train)
    assert train.weights == {"a.jsonl": 2, "b.jsonl": 0.5}
    assert found.labels == ("x", "y", "z")
    assert found.report.leakage == {"validation": 0, "test": 0}
    assert found.report.prompt_leakage["test"] == 1
    assert any("1 labels stand in no training row" in note for note in found.report.notes)
    assert not {row.text for row in found.train} & {row.text for row in found.validation}


def test_a_retrieval_set_is_made_of_rankings(tmp_path: Path) -> None:
    rows = [
        {"query": "q", "positive": "p", "negative": "n"},
        {"query": "q", "positive": "o", "negative": "p"},
    ]
    found = retrieval_of(read(tmp_path, "similarity", rows).rows)
    assert found is not None
    assert found.relevance == {"q0": {"d0": 1, "d1": 0, "d2": 1}}
