"""What the advisor says is not trained yet is what the trainer refuses, and nothing else."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from luthier.catalog.trains import NOT_TRAINED, why_not_trained
from luthier.errors import Unsupported
from luthier.schema.recipe import Purpose, Recipe


def recipe(**changes: Any) -> Recipe:
    values = {"model": {"id": "HuggingFaceTB/SmolLM2-135M-Instruct"}, "data": {"train": "rows.jsonl"}}
    return Recipe.model_validate({**values, **changes})


@pytest.mark.parametrize("purpose", get_args(Purpose))
def test_a_purpose_is_refused_exactly_where_it_is_listed(purpose: Purpose) -> None:
    from luthier.tasks.registry import task_class

    try:
        task_class(recipe(task=purpose))
    except (Unsupported, ImportError):
        refused = True
    else:
        refused = False
    assert refused == (why_not_trained(purpose, "lora") is not None)


def test_the_first_reason_is_told() -> None:
    assert why_not_trained("chat", "lora") is None
    for word, why in NOT_TRAINED.items():
        asked: dict[str, Any] = {"purpose": "chat", "method": "lora"}
        match word:
            case "devices":
                asked["devices"] = 2
            case "image":
                asked |= {"images": True, "method": "qlora"}
                assert why_not_trained("chat", "lora", images=True) is None
            case "from-scratch":
                asked["goal"] = word
            case _:
                asked["method"] = word
        assert why_not_trained(**asked) == why
