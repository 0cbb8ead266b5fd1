"""What is recommended for a machine is what a plan of its recipe says there."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from luthier.catalog.index import model_card
from luthier.errors import DoesNotFit
from luthier.planning.hypothetical import parse_hardware
from luthier.planning.recommend import recommend
from luthier.planning.recommend.recipe import to_recipe
from luthier.planning.resolve import Resolved, resolve
from luthier.schema.data import Lengths
from luthier.schema.data_profile import LengthProfile
from luthier.schema.plan import Candidate
from luthier.schema.request import MethodName, Request


def lengths(count: int, mean: float, longest: int) -> Lengths:
    words = dict.fromkeys(("p90", "p95", "p99", "maximum"), longest)
    return Lengths(count=count, total=round(count * mean), minimum=8, median=round(mean), **words)


def both(model: str, machine: str, *, answers: bool = False, **asked: Any) -> tuple[Candidate, Resolved]:
    """The candidate for that model, and the plan of its recipe, over rows as it took them.

    answers: whether prompts are held out that the trained model answers.
    """
    request, hardware = Request.model_validate({"purpose": "chat"} | asked), parse_hardware(machine)
    found = recommend(request, hardware, models=[model_card(model)]).candidates
    assert found, "it fits"
    candidate, batch = found[0], found[0].batch
    assert candidate.card.architecture is not None
    profile = LengthProfile(
        train=lengths(batch.rows, batch.tokens_per_row * batch.texts, batch.sequence_length * batch.texts),
        trained_tokens=round(batch.rows * batch.tokens_per_row * batch.texts / 2), inputs=batch.texts,
        prompts=lengths(100, batch.tokens_per_row, batch.sequence_length) if answers else None,
    )  # fmt: skip
    recipe = to_recipe(candidate, request)
    return candidate, resolve(recipe, arch=candidate.card.architecture, hardware=hardware, profile=profile)


@pytest.mark.parametrize(
    ("model", "machine", "asked"),
    [
        ("Qwen/Qwen3-4B-Instruct-2507", "t4", {}),
        ("Qwen/Qwen3-0.6B", "cpu:16GB", {}),
        ("Qwen/Qwen3-Embedding-4B", "rtx 3060", {"purpose": "similarity"}),
        ("google/gemma-4-31B-it", "8xh100", {"method": "lora"}),
        ("Qwen/Qwen3-14B", "8xh100", {"method": "full"}),
        ("Llama-3.3-70B-Instruct", "h100", {"method": "qlora"}),
    ],
)
def test_a_plan_takes_about_as_long_as_was_recommended(
    model: str, machine: str, asked: dict[str, Any]
) -> None:
    candidate, plan = both(model, machine, **asked)
    assert plan.recipe.model.dtype == candidate.batch.dtype
    said, planned = candidate.estimate.seconds, plan.estimate.seconds
    assert said is not None
    assert planned is not None
    assert said.expected == pytest.approx(planned.expected, rel=0.3)


def test_what_compares_the_texts_of_a_batch_is_recommended_for_one_gpu() -> None:
    candidate, plan = both("Qwen/Qwen3-Embedding-0.6B", "2xh100", purpose="similarity")
    assert candidate.batch.devices == 1
    assert plan.recipe.training.devices == 1


def test_rows_with_images_are_recommended_for_one_gpu() -> None:
    request = Request.model_validate({"purpose": "chat", "features": ["image"]})
    found = recommend(request, parse_hardware("2x4090"), models=[model_card("qwen3-vl-4b-instruct")])
    assert found.candidates[0].batch.devices == 1
    assert to_recipe(found.candidates[0], request).training.devices == 1


def test_dropout_of_the_recipe_is_counted() -> None:
    candidate, plan = both("Qwen/Qwen3-0.6B", "cpu:16GB")
    assert candidate.method == plan.recipe.method
    assert candidate.method.name == "lora"
    assert candidate.method.dropout > 0


def test_several_gpus_recompute_rather_than_gather_where_that_is_faster() -> None:
    candidate, _ = both("google/gemma-4-31B-it", "8xh100", method="lora")
    assert (candidate.batch.shard, candidate.batch.checkpointing) == (1, True)


def test_weights_that_the_host_cannot_read_to_divide_them_are_rejected_with_the_reason() -> None:
    request, hardware = Request(purpose="chat", method="qlora"), parse_hardware("4x4090")
    plan = recommend(request, hardware, models=[model_card("Llama-3.3-70B-Instruct")])
    assert not plan.candidates
    assert plan.rejected[0].kind == "memory"
    assert "before they are divided" in plan.rejected[0].reason


def test_a_model_that_no_gpu_holds_to_answer_is_told_of_in_the_plan_s_words() -> None:
    request, hardware = Request(purpose="chat", method="lora"), parse_hardware("8xh100")
    found = recommend(request, hardware, models=[model_card("Llama-3.3-70B-Instruct")]).candidates[0]
    (told,) = [line for line in found.warnings if "one alone answers the held-out prompts" in line]
    assert "data.test_share=0" in told
    with pytest.raises(DoesNotFit, match="one alone answers the held-out prompts"):
        both("Llama-3.3-70B-Instruct", "8xh100", method="lora", answers=True)
    both("Llama-3.3-70B-Instruct", "8xh100", method="lora")


def test_a_reranker_that_no_gpu_holds_whole_is_rejected() -> None:
    request = Request(purpose="reranking", method="full")
    plan = recommend(request, parse_hardware("4xrtx 3060"), models=[model_card("Qwen/Qwen3-Reranker-4B")])
    assert not plan.candidates
    assert "cannot be divided" in plan.rejected[0].reason


@pytest.mark.parametrize("machine", ["4x4090", "8xh100", "2xh200"])
def test_the_plan_takes_whatever_is_recommended_for_several_gpus(machine: str) -> None:
    for model in ("Llama-3.3-70B-Instruct", "Qwen/Qwen3-32B", "google/gemma-4-31B-it"):
        for method in get_args(MethodName):
            request = Request(purpose="chat", method=method)
            found = recommend(request, parse_hardware(machine), models=[model_card(model)]).candidates
            if found:
                answers = not any("held-out prompts" in line for line in found[0].warnings)
                _, plan = both(model, machine, method=method, answers=answers)
                assert plan.recipe.training.devices == found[0].batch.devices
