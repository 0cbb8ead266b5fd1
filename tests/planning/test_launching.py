"""When launches are recorded, held against steps that were timed both ways or whose host was ahead."""

from __future__ import annotations

import pytest

from luthier.catalog.index import model_card
from luthier.planning.hypothetical import parse_hardware
from luthier.planning.launching import records
from luthier.schema.estimate import TrainingShape
from luthier.schema.recipe import Recipe

SMALL, LARGE = "Qwen/Qwen2.5-0.5B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"


def test_what_recording_itself_takes_is_weighed() -> None:
    """A 3B whose products take little less than launching them: the first kernel's wait turns it round."""
    recipe = Recipe.model_validate(
        {"task": "chat", "model": {"id": "Qwen/Qwen2.5-3B-Instruct"}, "method": {"name": "full"},
         "data": {"train": "rows.jsonl"}}
    )  # fmt: skip
    arch = model_card(recipe.model.id).architecture
    assert arch is not None

    def pays(tokens: int) -> bool:
        shape = TrainingShape(micro_batch_size=1, sequence_length=tokens, compiled=True)
        return records(recipe, arch, shape, parse_hardware("h100"), compiled=True)[0]

    assert pays(2048)
    assert not pays(3000), "95 ms of products, 101 to launch them, 11 until a recorded one begins"


@pytest.mark.parametrize(
    ("model", "method", "tokens", "pays"),
    [
        (SMALL, "full", 2048, True),  # 84.7 ms, 36.0 recorded
        (SMALL, "lora", 2048, True),  # 196.9 ms, 33.4 recorded
        (SMALL, "full", 16384, False),  # 150.4 ms, 153.5 recorded
        (LARGE, "lora", 2048, True),  # 601 ms for four, 554 recorded
        (LARGE, "lora", 4096, False),  # 244 ms, 271 recorded (an H200)
        (LARGE, "lora", 8192, False),  # 479 ms, 497 recorded (an H200)
    ],
)
def test_launches_are_recorded_where_that_won(model: str, method: str, tokens: int, pays: bool) -> None:
    recipe = Recipe.model_validate(
        {"task": "chat", "model": {"id": model}, "method": {"name": method}, "data": {"train": "rows.jsonl"}}
    )
    arch = model_card(model).architecture
    assert arch is not None
    shape = TrainingShape(micro_batch_size=1, sequence_length=tokens, documents=tokens // 2048, compiled=True)
    assert records(recipe, arch, shape, parse_hardware("h100"), compiled=True)[0] is pays
