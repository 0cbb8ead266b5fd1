"""Weights that stay gathered for a pass, for a micro-batch or for a whole step: the same training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sharded_runs import assert_near, events, saved, started

pytestmark = pytest.mark.timeout(300)
EXACT = ("lora, single", "lora", "llama", "bf16, six")
LATER = ("lora, six", "llama, single", "llama, six", "bf16", "mixtral")
LEVELS = ("backward", "step")
MOMENTS = ("before", "first, forward", "first, backward", "last, forward", "last, backward", "evaluation")
WHOLE = {
    "two": (False, False, False, False, False, False),
    "backward": (False, True, False, True, False, False),
    "step": (False, True, True, True, False, False),
}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = "+".join((*EXACT, "rounded, six"))
    return started(tmp_path_factory.mktemp("levels"), names, *LEVELS)


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return started(tmp_path_factory.mktemp("later"), "+".join(LATER), *LEVELS, "groups", "four")


def assert_as_one(folder: Path, case: str, layout: str) -> None:
    """Losses and gradient norms to 1e-6, weights and moments (so every gradient) to 1e-5."""
    one, other = folder / case / "one", folder / case / layout
    before, after = events(one, "step"), events(other, "step")
    assert len(before) == len(after) > 1
    for left, right in zip(before, after, strict=True):
        assert right["loss"] == pytest.approx(left["loss"], rel=1e-6)
        assert right["grad_norm"] == pytest.approx(left["grad_norm"], rel=1e-6)
        assert (right["tokens"], right["trained_tokens"]) == (left["tokens"], left["trained_tokens"])
    for left, right in zip(events(one, "validation"), events(other, "validation"), strict=True):
        assert right["loss"] == pytest.approx(left["loss"], rel=1e-6)
    for step in (1, len(before)):
        for left, right in zip(saved(one, step), saved(other, step), strict=True):
            assert_near(left, right, 1e-5)


@pytest.mark.parametrize("layout", LEVELS)
@pytest.mark.parametrize("case", EXACT)
def test_it_learns_what_one_process_does(few: Path, case: str, layout: str) -> None:
    assert_as_one(few, case, layout)


def test_a_run_whose_micro_batches_were_halved_goes_on_in_as_many_pieces_everywhere(few: Path) -> None:
    assert_as_one(few, "lora", "halved")
    assert [event["step"] for event in events(few / "lora" / "halved", "resumed")] == [1]


@pytest.mark.workflow
@pytest.mark.parametrize("layout", [*LEVELS, "groups", "four"])
@pytest.mark.parametrize("case", LATER)
def test_other_families_and_groups_that_each_hold_the_model_do_too(
    later: Path, case: str, layout: str
) -> None:
    assert_as_one(later, case, layout)


@pytest.mark.parametrize("layout", WHOLE)
def test_what_was_gathered_is_let_go_when_the_choice_says(few: Path, layout: str) -> None:
    found = json.loads((few / "held" / layout / "held.json").read_text())
    # torch 2.11 divides no bytes.
    assert all([*found.pop("packed"), *found.pop("floating")])
    # The last layer is never let go between its two passes.
    assert {moment: whole[0] for moment, whole in found.items()} == dict(
        zip(MOMENTS, WHOLE[layout], strict=True)
    )


@pytest.mark.parametrize("layout", LEVELS)
def test_gradients_added_up_in_bf16_are_those_of_one_process_but_for_rounding(few: Path, layout: str) -> None:
    one, two = (events(few / "rounded, six" / place, "step") for place in ("one", layout))
    assert [event["loss"] for event in two] == pytest.approx([event["loss"] for event in one], rel=0.01)
