"""Shipped recipes: each reads, names a known model and fits the hardware that it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from luthier.catalog.index import model_card
from luthier.catalog.purposes import spec_of
from luthier.catalog.shipped import ShippedRecipe, shipped_recipe, shipped_recipes
from luthier.cli.main import build
from luthier.cli.recipes import predicted
from luthier.errors import UsageError
from luthier.schema.load import load_recipe
from luthier.schema.recipe import Purpose

RECIPES = shipped_recipes()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_shipped_recipe_fits(recipe: ShippedRecipe) -> None:
    loaded = load_recipe(recipe.path)
    assert recipe.title
    assert recipe.notes
    row = predicted(recipe)
    assert row["fits"], row
    if loaded.model.from_scratch is not None:
        return
    card = model_card(loaded.model.id)
    assert loaded.task in card.purposes or card.kind in spec_of(loaded.task).kinds
    assert loaded.model.id in (card.id, card.variants.base, card.variants.instruct)
    if loaded.export is not None and loaded.export.gguf:
        assert card.gguf.supported


def test_every_purpose_and_method_has_one() -> None:
    loaded = [load_recipe(recipe.path) for recipe in RECIPES]
    assert {recipe.task for recipe in loaded} == set(get_args(Purpose))
    assert {recipe.method.name for recipe in loaded} == {"full", "lora", "qlora"}
    models = {recipe.model.id for recipe in loaded}
    # Guide C's four examples.
    assert {"Qwen/Qwen3-0.6B", "Qwen/Qwen2.5-7B-Instruct", "meta-llama/Llama-3.3-70B-Instruct",
            "deepseek-ai/DeepSeek-V3.2"} <= models  # fmt: skip


def test_one_that_the_host_cannot_read_says_so() -> None:
    rows = {row["name"]: row for row in map(predicted, RECIPES)}
    refused = {name for name, row in rows.items() if row["not_trained"]}
    assert refused == {"gpus-deepseek-v3.2-lora"}
    assert "of the host's memory" in rows["gpus-deepseek-v3.2-lora"]["not_trained"]


def test_an_unknown_recipe_gets_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        shipped_recipe("chat-qwen3-8b")
    assert "chat-qwen3-8b-lora" in (caught.value.hint or "")


def test_list_and_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from luthier.cli.recipes import copy, list_recipes

    list_recipes(json=True)
    found = json.loads(capsys.readouterr().out)["recipes"]
    assert [row["name"] for row in found] == [recipe.name for recipe in RECIPES]
    target = tmp_path / "mine.yaml"
    copy("chat-qwen3-8b-lora", target)
    assert load_recipe(target).model.id == "Qwen/Qwen3-8B"
    with pytest.raises(UsageError, match="exists already"):
        copy("chat-qwen3-8b-lora", target)
    assert build() is not None
