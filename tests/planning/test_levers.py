"""Options that do not go together are refused before anything loads, with the way out."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.catalog.index import all_models, model_card
from luthier.errors import LuthierError, RecipeError, Unsupported
from luthier.planning.hypothetical import parse_hardware
from luthier.planning.levers import check_levers, check_products, check_units, products_told
from luthier.schema.estimate import TrainingShape
from luthier.schema.recipe import Recipe

FULL = {"method": {"name": "full"}}
NARROW = {"method": {"name": "full", "products": "float8"}}
NEW = {"model": {"id": "m", "new_tokens": ["<a>"]}}
PAIRS = {"preference": {"loss": "dpo"}}
AWAY = {"offload_parameters": True}
AT_ONCE = {"update_in_backward": True, "max_grad_norm": 0}


def recipe(training: dict[str, Any], **sections: Any) -> Recipe:
    values = {"model": {"id": "m"}, "data": {"train": "t.jsonl"}, "training": training, **sections}
    return Recipe.model_validate(values)


@pytest.mark.parametrize(
    ("training", "sections", "kind", "words"),
    [
        ({"optimizer": "muon"}, {}, Unsupported, "adapter"),
        ({"select": "ema"}, {}, RecipeError, "training.ema keeps none"),
        ({"neftune_alpha": 5}, {"task": "similarity"}, Unsupported, "not for similarity"),
        ({"update_in_backward": True}, FULL, RecipeError, "max_grad_norm is 1"),
        (AT_ONCE, {}, Unsupported, "adapters are too few"),
        (AT_ONCE | {"batch_size": 8, "micro_batch_size": 4}, FULL, RecipeError, "8 rows"),
        (AT_ONCE | {"on_spike": "skip"}, FULL, RecipeError, "on_spike"),
        (AT_ONCE | {"optimizer": "paged-adamw-8bit"}, FULL, Unsupported, "not tested"),
        (AT_ONCE | {"devices": 2}, FULL, Unsupported, "all devices"),
        ({"ema": 0.9, "devices": 2, "parallel": {"tensor": 2}}, FULL, Unsupported, "parallel.tensor"),
        (AWAY, FULL, Unsupported, "weights that are trained"),
        (AWAY, {"task": "similarity"}, Unsupported, "not for similarity"),
        (AWAY, PAIRS, Unsupported, "preference pairs"),
        (AWAY | {"devices": 2}, {}, Unsupported, "each device"),
        (AWAY | {"activation_checkpointing": "none"}, {}, Unsupported, "keeps for its backward pass"),
        (AWAY | {"recomputed_layers": 3}, {}, Unsupported, "keeps for its backward pass"),
        (AWAY | {"cuda_graphs": True}, {}, Unsupported, "recorded"),
        ({"devices": 2, "parallel": {"shard": 2}}, NARROW, Unsupported, "parallel.shard: products"),
        ({"compile": False}, NARROW, Unsupported, "compiled layers"),
        ({}, NARROW | PAIRS, Unsupported, "untouched model"),
        ({}, NARROW | {"model": {"id": "m", "dtype": "float32"}}, Unsupported, "16 bits"),
        ({}, NEW | {"task": "similarity"}, Unsupported, "models that write"),
        ({}, NEW | {"vision": {}}, Unsupported, "a model that sees"),
        ({}, NEW | PAIRS, Unsupported, "preference pairs"),
        ({"frozen_layers": 1}, NEW | FULL, RecipeError, "frozen_layers freezes the embeddings"),
        ({"devices": 2, "parallel": {"shard": 2}}, NEW, Unsupported, "parallel.shard: rows of new tokens"),
        ({"devices": 2, "parallel": {"pipeline": 2}}, NEW, Unsupported, "parallel.pipeline"),
    ],
)
def test_refused_with_a_way_out(
    training: dict[str, Any], sections: dict[str, Any], kind: type[LuthierError], words: str
) -> None:
    with pytest.raises(kind, match=words) as error:
        check_levers(recipe(training, **sections))
    assert error.value.hint


@pytest.mark.parametrize(
    ("training", "sections"),
    [
        ({"optimizer": "muon", "ema": 0.99, "select": "ema"}, FULL),
        ({"neftune_alpha": 5.0}, {}),
        (AT_ONCE | {"batch_size": 8, "micro_batch_size": 8}, FULL),
        ({"ema": 0.9, "devices": 2}, FULL),
        ({"devices": 2, "parallel": {"replicate": 2}}, NEW),
        ({"devices": 2, "parallel": {"replicate": 2}}, NARROW),
        (AWAY | {"activation_checkpointing": "offload"}, NEW),
    ],
)
def test_what_goes_together_passes(training: dict[str, Any], sections: dict[str, Any]) -> None:
    check_levers(recipe(training, **sections))


@pytest.mark.parametrize("method", [{"name": "lora", "base": "float8"}, NARROW["method"]])
@pytest.mark.parametrize(("words", "device"), [("A100", "cuda"), ("T4", "cuda"), ("cpu:16GB", "cpu")])
def test_eight_bit_products_are_refused_on_cards_without_them(
    words: str, device: str, method: dict[str, str]
) -> None:
    asked = recipe({}, method=method)
    with pytest.raises(Unsupported, match="float8 needs matrix units"):
        check_units(asked, parse_hardware(words), device)
    check_units(asked, parse_hardware("H100"), "cuda")
    check_units(recipe({}), parse_hardware(words), device)


@pytest.mark.parametrize("name", ["adamw-8bit", "paged-adamw-8bit"])
def test_states_in_eight_bits_are_refused_on_a_cpu(name: str) -> None:
    asked = recipe({"optimizer": name})
    with pytest.raises(Unsupported, match=f"{name} works on CUDA only") as error:
        check_units(asked, parse_hardware("cpu:16GB"), "cpu")
    assert "adamw-bf16" in str(error.value.hint)
    check_units(asked, parse_hardware("H100"), "cuda")


def test_eight_bit_products_of_experts_are_refused() -> None:
    mixture = next(
        card.architecture for card in all_models() if card.architecture and card.architecture.experts
    )
    with pytest.raises(Unsupported, match="the experts of a mixture are one tensor") as error:
        check_products(recipe({}, **NARROW), mixture)
    assert "method.products" in str(error.value.hint)
    check_products(recipe({}, **FULL), mixture)


@pytest.mark.parametrize(
    ("model", "slower"), [("Qwen/Qwen2.5-0.5B-Instruct", True), ("meta-llama/Llama-3.1-8B-Instruct", False)]
)
def test_eight_bit_products_that_are_foretold_slower_are_told(model: str, slower: bool) -> None:
    arch = model_card(model).architecture
    assert arch is not None
    shape = TrainingShape(micro_batch_size=1, sequence_length=4096, batch_size=1, compiled=True)
    told = products_told(arch, shape, parse_hardware("H200").accelerators[0])
    assert ("take longer with it" in told) == slower
    assert ("hold a short run" in told) != slower
    assert "hold a short run" in products_told(arch, shape, parse_hardware("L4").accelerators[0])
