"""A recipe's data with an account of every row."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.fit import NOTHING_LEFT, OVER_LENGTH
from luthier.data.load import LoadedData, load_splits
from luthier.data.render import prompt_ids
from luthier.data.splits import choose, cut, prompt_key
from luthier.errors import DataError, RecipeError, Unsupported
from luthier.schema.protocols import ChatRow
from luthier.schema.recipe import DataChoice, ModelChoice, Recipe


def rows(count: int, *, answer: Callable[[int], str] = str) -> list[dict]:
    return [{"prompt": f"What is number {n}?", "completion": answer(n)} for n in range(count)]


def write(path: Path, values: list[dict]) -> str:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path.name


@pytest.fixture
def load(tmp_path: Path, make_tokenizer):
    tokenizer = make_tokenizer("chatml")

    def loaded(
        train: list[dict], *, length: int | None = None, seed: int = 17, task="chat", of=tokenizer, **data
    ) -> LoadedData:
        name = write(tmp_path / "train.jsonl", train)
        recipe = Recipe(
            model=ModelChoice(id="m"), task=task, seed=seed, data=DataChoice(train=(name,), **data)
        )
        return load_splits(recipe, of, base=tmp_path, sequence_length=length)

    return loaded


def test_splits_are_cut_by_seed_and_every_row_is_accounted_for(load) -> None:
    data = load(rows(100))
    report = data.report
    assert [(s.name, s.read, s.kept, s.cut_from_train) for s in report.splits] == [
        ("train", 85, 85, False),
        ("test", 10, 10, True),
        ("validation", 5, 5, True),
    ]
    assert len(data.splits.train) == 85
    assert len(data.splits.validation) == 5
    assert [type(row) for row in data.splits.tests["test"]] == [ChatRow] * 10
    ids = [
        row.id
        for part in (data.splits.train, data.splits.validation, data.splits.tests["test"])
        for row in part
    ]
    assert len(set(ids)) == 100
    assert report.leakage == {"test": 0, "validation": 0}
    assert report.split("train").trained_tokens == sum(int(r.trained.sum()) for r in data.splits.train)
    assert report.split("train").tokens.total == sum(len(r.ids) for r in data.splits.train)
    assert report == load(rows(100)).report
    assert report.digest != load(rows(100), seed=1).report.digest


def test_lengths_for_the_planner_are_those_before_any_cut(load) -> None:
    data = load(long_rows(), length=64, over_length="truncate", validation_share=0)
    assert data.lengths.train.maximum > 64 >= max(len(row.ids) for row in data.splits.train)
    assert data.lengths.validation is None
    assert data.lengths.prompts.count == data.lengths.answers.count == len(data.splits.tests["test"])
    assert data.lengths.answers.minimum == 2  # a digit and the end token
    assert 0 < data.lengths.trained_share < 1


def test_the_split_does_not_depend_on_the_order_of_the_file(load) -> None:
    one, two = load(rows(60)), load(rows(60)[::-1])
    assert {r.id for r in one.splits.train} == {r.id for r in two.splits.train}


CHATS = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 3), st.none() | st.integers(0, 2)), min_size=1, max_size=60
)


@settings(max_examples=150, deadline=None)
@given(CHATS, st.floats(0.01, 0.5), st.floats(0.01, 0.4), st.integers(0, 4))
def test_equal_rows_prompts_and_groups_never_part(triples, test, validation, seed) -> None:
    chats = [
        ChatRow(
            [{"role": "user", "content": str(q)}, {"role": "assistant", "content": str(a)}],
            "f", line, f"{q}/{a}", None, None if g is None else str(g),
        )
        for line, (q, a, g) in enumerate(triples)
    ]  # fmt: skip
    try:
        parts = cut(chats, {"test": test, "validation": validation}, seed=seed)
    except DataError:
        assert len({(c.group, prompt_key(c), c.id) for c in chats}) < 40
        return
    assert sorted(row.line for part in parts.values() for row in part) == list(range(len(chats)))
    assert all(parts.values())
    where: dict[str, set[str]] = {}
    for name, part in parts.items():
        for row in part:
            key = f"group {row.group}" if row.group is not None else row.id
            where.setdefault(key, set()).add(name)
    assert all(len(names) == 1 for names in where.values())


def test_duplicates_and_leakage_are_counted(load, tmp_path: Path) -> None:
    held = write(
        tmp_path / "held.jsonl",
        [
            *rows(3),
            {"prompt": "What is number 5?", "completion": "five"},
            {"prompt": "new", "completion": "x"},
        ],
    )
    data = load([*rows(20), *rows(4)], test={"held": (held,)}, validation_share=0)
    assert data.report.split("train").duplicates == 4
    assert data.report.leakage == {"held": 3}
    assert data.report.prompt_leakage == {"held": 1}
    assert any("3 of the held rows stand in the training rows" in note for note in data.report.notes)
    assert [s.name for s in data.report.splits] == ["train", "held"]


def test_max_rows_takes_some_of_train_by_seed(load) -> None:
    data = load(rows(100), max_rows=20)
    train = data.report.split("train")
    assert (train.read, train.kept, sum(train.dropped.values())) == (85, 20, 65)
    assert {r.id for r in data.splits.train} < {r.id for r in load(rows(100)).splits.train}
    chats = [ChatRow([], "f", n, "same") for n in range(9)]
    assert len(choose(chats, 4, seed=0)) == 4


def long_rows() -> list[dict]:
    return [
        *rows(30),
        {"prompt": "word " * 200, "completion": "x"},
        {"prompt": "q", "completion": "word " * 200},
    ]


def test_rows_too_long_are_an_error_with_every_way_out(load) -> None:
    with pytest.raises(DataError, match=r"2 of 32 rows are longer than 64 tokens; the longest has") as caught:
        load(long_rows(), length=64, test_share=0, validation_share=0)
    assert caught.value.where in ("train.jsonl:31", "train.jsonl:32")
    assert "training.sequence_length=" in (caught.value.hint or "")
    assert "truncate" in (caught.value.hint or "")


def test_rows_too_long_can_be_cut_or_dropped(load) -> None:
    none = {"test_share": 0, "validation_share": 0}
    cut_off = load(long_rows(), length=64, over_length="truncate", **none).report.split("train")
    assert (cut_off.kept, cut_off.truncated, cut_off.dropped) == (31, 1, {NOTHING_LEFT: 1})
    dropped = load(long_rows(), length=64, over_length="drop", **none).report.split("train")
    assert (dropped.kept, dropped.dropped) == (30, {OVER_LENGTH: 2})
    assert dropped.read == dropped.kept + sum(dropped.dropped.values())
    with pytest.raises(DataError, match="no row is left"):
        load(long_rows(), length=8, over_length="drop", **none)


def test_the_tokenizers_own_limit_holds_without_another(load, make_tokenizer) -> None:
    with pytest.raises(DataError, match="longer than 64 tokens") as caught:
        load(long_rows(), of=make_tokenizer("chatml", model_max_length=64), test_share=0, validation_share=0)
    assert "the model itself reads 64 tokens" in (caught.value.hint or "")


def test_long_texts_are_cut_into_pieces_without_loss(load, make_tokenizer) -> None:
    tokenizer = make_tokenizer(None)
    data = load(
        [{"text": "word " * 300}, {"text": "short"}], length=64, test_share=0, validation_share=0,
        task="text-generation", of=tokenizer,
    )  # fmt: skip
    train = data.splits.train
    assert max(len(row.ids) for row in train) == 64
    text = "".join(tokenizer.decode(row.ids.tolist(), skip_special=False) for row in train)
    assert text == "word " * 300 + "<|endoftext|>short<|endoftext|>"
    assert data.report.split("train").kept == 2


def test_a_base_model_takes_questions_as_plain_text(load, make_tokenizer) -> None:
    tokenizer = make_tokenizer(None)
    data = load(rows(30), task="text-generation", of=tokenizer)
    row = data.splits.train[0]
    whole = tokenizer.decode(row.ids.tolist(), skip_special=False)
    answer = tokenizer.decode(row.ids[row.trained].tolist(), skip_special=False)
    assert whole.startswith("What is number")
    assert answer.removesuffix("<|endoftext|>").isdigit()
    asked = data.splits.tests["test"][0].messages[:-1]
    assert tokenizer.decode(prompt_ids(asked, tokenizer)) == asked[0]["content"]
    with pytest.raises(Unsupported, match="no chat template"):
        load(rows(30), of=tokenizer)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], "empty"),
        (rows(2), "too few to hold some back"),
        ([*rows(20), {"prompt": "x"}], "there is no completion"),
        ([*rows(20), {"prompt": "x", "completion": "y", "messages": 1}], None),
        (
            [
                {
                    "messages": [
                        {"role": "user", "content": "x"},
                        {"role": "assistant", "content": "y", "weight": 0},
                    ]
                }
            ]
            * 9,
            "too few",
        ),
    ],
)
def test_bad_data(load, values, words) -> None:
    if words is None:
        with pytest.raises(DataError):
            load(values)
        return
    with pytest.raises(DataError, match=words):
        load(values)


def test_nothing_to_train_and_wrong_names(load) -> None:
    silent = {
        "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 0}]
    }
    with pytest.raises(DataError, match="no token of this row would be trained") as caught:
        load([silent], test_share=0, validation_share=0)
    assert caught.value.where == "train.jsonl:1"
    with pytest.raises(RecipeError, match="promt is not a role"):
        load(rows(9), columns={"promt": "prompt"})


def test_broken_lines_and_broken_rows_come_together(load, tmp_path: Path) -> None:
    write(tmp_path / "bad.jsonl", [*rows(5), {"prompt": "", "completion": "x"}])
    with (tmp_path / "bad.jsonl").open("a") as file:
        file.write("{broken\n")
    recipe = Recipe(model=ModelChoice(id="m"), data=DataChoice(train=("bad.jsonl",)))
    with pytest.raises(DataError) as caught:
        load_splits(recipe, None, base=tmp_path, sequence_length=None)  # type: ignore[arg-type]
    assert "2 rows cannot be used" in caught.value.message
    assert "bad.jsonl:6" in caught.value.message
    assert "bad.jsonl:7" in caught.value.message
