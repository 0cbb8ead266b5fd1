"""Shapes for models that begin from scratch: near the size asked for, and in usual proportions."""

import pytest

from luthier.errors import RecipeError
from luthier.schema.recipe import FromScratch, ModelChoice
from luthier.sizing.model_config import architecture_from_config
from luthier.sizing.parameters import count_parameters
from luthier.sizing.scratch import scratch_config


def config(vocabulary=8192, **choice):
    return scratch_config(FromScratch(**choice), vocabulary=vocabulary, bos=None, eos=0, pad=1)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("size", ["3M", "30M", "125M", "1.5B"])
def test_the_shape_is_near_the_size(family, size):
    choice = FromScratch(family=family, parameters=size)
    found = config(family=family, parameters=size)
    total = count_parameters(architecture_from_config(found)).total
    assert total == pytest.approx(choice.parameters, rel=0.1)
    assert found["hidden_size"] % found["num_attention_heads"] == 0
    assert 8 < found["hidden_size"] / found["num_hidden_layers"] < 260
    assert found["tie_word_embeddings"] == (choice.parameters < 1e9)


def test_what_is_given_is_kept():
    found = config(vocabulary=68, parameters="800k", hidden_size=128, layers=4, heads=4, context=64)
    assert (found["hidden_size"], found["num_hidden_layers"], found["num_attention_heads"]) == (128, 4, 4)
    assert found["max_position_embeddings"] == 64


def test_what_cannot_be_is_refused():
    with pytest.raises(RecipeError, match="cannot be parted over 3 heads"):
        config(parameters="1M", hidden_size=128, heads=3)
    with pytest.raises(RecipeError, match="the nearest shape has") as caught:
        config(vocabulary=200_000, parameters="100k")
    assert "smaller model.from_scratch.vocabulary" in caught.value.hint


def test_sizes_are_written_as_people_do():
    assert FromScratch(parameters="1.5B").parameters == 1_500_000_000
    assert FromScratch(parameters=" 800k ").parameters == 800_000
    assert FromScratch(parameters=12_345).parameters == 12_345
    with pytest.raises(ValueError, match="parameters"):
        FromScratch(parameters="many")
    chosen = ModelChoice.model_validate({"from_scratch": {"parameters": "30M"}})
    assert chosen.id == "llama-30M-from-scratch"
