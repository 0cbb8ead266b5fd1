"""What is not divided by tensor, context, pipeline and expert is refused before anything loads, in words."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.errors import Unsupported
from luthier.planning.division import FAMILIES, check_division
from luthier.schema.model import Architecture, Experts
from luthier.schema.recipe import DataChoice, ModelChoice, Recipe

DENSE = Architecture(
    model_type="llama",
    layers=4,
    hidden_size=96,
    intermediate_size=192,
    attention_heads=6,
    kv_heads=2,
    head_dim=16,
    vocab_size=384,
    tied_embeddings=True,
)
MIXTURE = DENSE.model_copy(
    update={"model_type": "mixtral", "experts": Experts(total=4, active=2, intermediate_size=64)}
)


def asked(parallel: dict[str, int], **changes: Any) -> Recipe:
    devices = 1
    for size in parallel.values():
        devices *= size
    training = {"devices": devices, "parallel": parallel, **changes.pop("training", {})}
    known = {"model": ModelChoice(id="x"), "data": DataChoice(train=("x.jsonl",)), "training": training}
    return Recipe.model_validate({**known, **changes})


@pytest.mark.parametrize("side", sorted(FAMILIES))
def test_what_is_done_passes(side: str) -> None:
    arch = MIXTURE if side == "expert" else DENSE
    check_division(asked({side: 2}), arch)
    check_division(asked({side: 2, "replicate": 2}, method={"name": "full"}), arch)
    check_division(asked({side: 1, "replicate": 2}, task="similarity"), arch)
    if side != "tensor":
        check_division(asked({side: 2}, method={"name": "qlora"}), arch)


@pytest.mark.parametrize(
    ("parallel", "changes", "said"),
    [
        ({"tensor": 2, "context": 2}, {}, "tensor and context are not done together"),
        ({"context": 2, "shard": 2}, {}, "context and shard are not done together"),
        ({"tensor": 4}, {}, r"heads \(6\) does not divide by 4"),
        ({"tensor": 3}, {}, r"key and value heads \(2\) does not divide by 3"),
        ({"pipeline": 5}, {}, "there are 4"),
        ({"expert": 2}, {}, "llama is not held"),
        ({"tensor": 2}, {"method": {"name": "qlora"}}, "four bits are not cut"),
        ({"pipeline": 2}, {"method": {"name": "lora", "base": "float8"}}, "a model in float8"),
        ({"tensor": 2}, {"method": {"name": "lora", "dora": True}}, "DoRA"),
        ({"context": 2}, {"task": "similarity"}, "only chat and text generation"),
        ({"context": 2}, {"training": {"compile": True}}, "not compiled"),
        ({"context": 2}, {"training": {"neftune_alpha": 5}}, "whole rows"),
        ({"context": 2}, {"training": {"update_in_backward": True}}, "after the backward pass"),
        ({"pipeline": 2}, {"training": {"ema": 0.9}}, "average"),
        ({"pipeline": 2}, {"training": {"optimizer": "muon"}}, "looks at whole weights"),
        (
            {"pipeline": 2},
            {"training": {"frozen_layers": 1}, "method": {"name": "full"}},
            "nothing to train",
        ),
        ({"context": 2}, {"model": {"id": "x", "trust_remote_code": True}}, "not held to one device"),
    ],
)
def test_what_is_not_done_is_refused(parallel: dict[str, int], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(Unsupported, match=said) as refused:
        check_division(asked(parallel, **changes), DENSE)
    assert refused.value.hint


def test_experts_are_divided_as_they_are() -> None:
    with pytest.raises(Unsupported, match=r"experts \(4\) does not divide by 3"):
        check_division(asked({"expert": 3}), MIXTURE)
    with pytest.raises(Unsupported, match="adapters on experts"):
        check_division(asked({"expert": 2}, method={"name": "lora", "experts": "all"}), MIXTURE)
