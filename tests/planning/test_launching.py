"""When launches are recorded, held against steps that were timed both ways or whose host was ahead."""

from __future__ import annotations

import pytest

from luthier.catalog.index import model_card
from luthier.planning.hypothetical import parse_hardware
from luthier.planning.launching import records
from luthier.schema.estimate import TrainingShape
from luthier.schema.recipe import Recipe

SMALL, LARGE = "Qwen/Qwen2.5-0.5B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"


@pytest.mark.parametrize(
    ("model", "method", "tokens", "pays"),
    [
        (SMALL, "full", 2048, True),  # 84.7 ms, 36.0 recorded
        (SMALL, "lora", 2048, True),  # 196.9 ms, 33.4 recorded
        (SMALL, "full", 16384, False),  # 150.4 ms, 153.5 recorded
        (LARGE, "lora", 2048, True),  # 601 ms for four, 554 recorded
        (LARGE, "lora", 8192, False),  # the host is ahead
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
