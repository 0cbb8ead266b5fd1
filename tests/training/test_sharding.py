"""Weights divided over processes: the same training as that of one, whatever the number of processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.training.world import World
from sharded_runs import assert_near, events, saved, started

pytestmark = pytest.mark.timeout(300)
STEPS = 3


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return started(tmp_path_factory.mktemp("few"), "llama+mixtral+lora+qlora")


@pytest.fixture(scope="module")
def all_others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return started(tmp_path_factory.mktemp("others"), "qwen3+gemma3+dora+experts+kahan+bf16+rounded")


def assert_same_training(folder: Path, case: str, layout: str) -> None:
    """Losses to 1e-6, gradient norms to 1e-6, weights to 1e-5, moments (so every gradient) to 1e-5."""
    one, other = folder / case / "one", folder / case / layout
    for kind in ("step", "validation"):
        before, after = events(one, kind), events(other, kind)
        assert [event["step"] for event in before] == [event["step"] for event in after]
        for left, right in zip(before, after, strict=True):
            assert right["loss"] == pytest.approx(left["loss"], rel=1e-6)
            if kind == "step":
                assert right["grad_norm"] == pytest.approx(left["grad_norm"], rel=1e-6)
                assert (right["tokens"], right["trained_tokens"]) == (left["tokens"], left["trained_tokens"])
    assert len(events(one, "step")) == STEPS
    assert events(one, "result") == events(other, "result")
    for step in (1, STEPS):
        for left, right in zip(saved(one, step), saved(other, step), strict=True):
            assert_near(left, right, 1e-5)


@pytest.mark.parametrize(
    ("case", "layout"),
    [
        ("llama", "copies"),
        ("llama", "two"),
        ("mixtral", "two"),
        ("lora", "two"),
        ("qlora", "two"),
        ("llama", "four"),
        ("qlora", "four"),
    ],
)
def test_divided_weights_learn_what_whole_ones_do(few: Path, case: str, layout: str) -> None:
    assert_same_training(few, case, layout)


@pytest.mark.workflow
@pytest.mark.parametrize("case", ["qwen3", "gemma3", "dora", "experts", "bf16"])
def test_other_families_types_and_ways_to_recompute_too(all_others: Path, case: str) -> None:
    assert_same_training(all_others, case, "two")


def test_a_run_goes_on_with_fewer_processes(few: Path) -> None:
    assert_same_training(few, "lora", "fewer")
    assert [event["step"] for event in events(few / "lora" / "fewer", "resumed")] == [1, 2]


def test_a_run_that_goes_on_with_as_many_is_exactly_the_uninterrupted_one(few: Path) -> None:
    whole, again = few / "lora" / "two", few / "lora" / "again"
    assert [event["step"] for event in events(again, "resumed")] == [1]
    for left, right in zip(saved(whole, STEPS), saved(again, STEPS), strict=True):
        assert_near(left, right, 0.0)


@pytest.mark.workflow
def test_weights_that_are_rounded_by_chance_stay_the_same_in_processes_that_hold_them(
    all_others: Path,
) -> None:
    assert events(all_others / "rounded" / "copies", "spread")[-1]["spread"] == 0.0
    for case in ("rounded", "kahan"):  # gradients in bf16, whose sums are rounded in another order
        one, two = (events(all_others / case / layout, "step") for layout in ("one", "two"))
        assert [event["loss"] for event in two] == pytest.approx([event["loss"] for event in one], rel=0.01)


def test_each_process_is_given_as_many_turns_as_the_others() -> None:
    from luthier.schema.recipe import Parallel

    def of(rank: int, items: int, shard: int) -> list[tuple[int, bool]]:
        world = World(rank, 2, parallel=Parallel(shard=shard))
        object.__setattr__(world, "share", rank)  # no processes are there to ask
        return world.turns(list(range(items)))

    assert of(0, 3, 2) == [(0, True), (2, True)]
    assert of(1, 3, 2) == [(1, True), (0, False)]
    assert of(1, 1, 2) == [(0, False)]
    assert of(1, 3, 1) == [(1, True)], "whole models wait for nobody"
