"""Texts turned round at a model's own marks: the same each time, nothing lost, long ones left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer

from luthier.data.infill import MARKS, Infill, infill_of, marks_of
from luthier.data.load import load_splits
from luthier.data.tokenizer import FileTokenizer, load_tokenizer
from luthier.errors import RecipeError, Unsupported
from luthier.schema.protocols import ChatRow
from luthier.schema.recipe import Recipe
from tiny import save_tiny_model

TEXTS = [f"the ball {i} is red and the cup {i} is blue" for i in range(60)]


def marked(folder: Path, which: int = 0) -> Path:
    """A tiny model whose tokenizer has the marks of one family."""
    save_tiny_model(folder)
    fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    marks = MARKS[which]
    fast.add_tokens([AddedToken(one, normalized=False) for one in (marks.before, marks.after, marks.middle)])
    fast.save(str(folder / "tokenizer.json"))
    return folder


def row(text: str) -> ChatRow:
    return ChatRow([{"role": "text", "content": text}], None, "texts.jsonl", 1, "ab" * 12)


@pytest.mark.parametrize("which", range(len(MARKS)))
def test_every_family_is_found_by_its_own_marks(tmp_path: Path, which: int) -> None:
    tokenizer = load_tokenizer(marked(tmp_path / "model", which))
    marks = marks_of(tokenizer)
    assert marks == MARKS[which]
    turned = Infill(marks, 1.0, 3, None)(row(TEXTS[0]), tokenizer).messages[0]["content"]
    parts = turned.replace(marks.after, "|").replace(marks.before, "|").split(marks.middle)
    first, second = parts[0].split("|")[1:]
    before, after = (second, first) if marks.after_first else (first, second)
    assert before + parts[1] + after == TEXTS[0]


def recipe_of(folder: Path, **data: object) -> Recipe:
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return Recipe.model_validate(
        {
            "task": "text-generation",
            "model": {"id": str(folder / "model")},
            "method": {"name": "full"},
            "data": {"train": str(folder / "texts.jsonl"), "fim_rate": 0.5, **data},
        }
    )


def texts_of(rows: object, tokenizer: FileTokenizer) -> list[str]:
    return [tokenizer.decode(one.ids.tolist(), skip_special=False) for one in rows]  # type: ignore[attr-defined]


@pytest.mark.parametrize("storage", ["memory", "cache", "stream"])
def test_about_that_share_is_turned_round_wherever_rows_are_kept(
    tmp_path: Path, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    tokenizer = load_tokenizer(marked(tmp_path / "model"))
    recipe = recipe_of(tmp_path, storage=storage, processes=1)
    found = load_splits(recipe, tokenizer, base=tmp_path, sequence_length=128).splits
    told = texts_of(found.train, tokenizer)
    turned = [text for text in told if "<|fim_middle|>" in text]
    assert 0.25 * len(told) < len(turned) < 0.75 * len(told)
    assert all(text.startswith("<|fim_prefix|>") and text.count("<|fim_suffix|>") == 1 for text in turned)
    again = load_splits(recipe, tokenizer, base=tmp_path, sequence_length=128).splits
    assert texts_of(again.train, tokenizer) == told
    assert not any("fim" in str(chat.messages) for chat in found.tests["test"]), "held-out texts stay whole"
    plain = recipe_of(tmp_path, storage="memory")
    held = load_splits(plain, tokenizer, base=tmp_path, sequence_length=128).splits
    assert sorted(texts_of(held.train, tokenizer)) == sorted(told)


def test_a_text_that_would_be_cut_stays_as_it_is(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(marked(tmp_path / "model"))
    infill = infill_of(1.0, 0, tokenizer, limit=4)
    assert infill is not None
    assert infill(row(TEXTS[0]), tokenizer) == row(TEXTS[0])
    assert infill_of(0.0, 0, tokenizer, limit=4) is None


def test_a_model_without_marks_and_another_purpose_are_refused(tmp_path: Path) -> None:
    from luthier.catalog.purposes import check_supported

    tokenizer = load_tokenizer(save_tiny_model(tmp_path / "model"))
    with pytest.raises(Unsupported, match="no marks for a gap"):
        load_splits(recipe_of(tmp_path), tokenizer, base=tmp_path, sequence_length=64)
    recipe = recipe_of(tmp_path).model_copy(update={"task": "chat"})
    with pytest.raises(RecipeError, match="fim_rate has no effect"):
        check_supported(recipe)
