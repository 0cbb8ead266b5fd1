"""Several processes that train one model: equal to one alone, and ended together whatever happens."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from luthier.errors import LuthierError, RecipeError, TrainingError, Unsupported, UsageError
from luthier.planning.together import check_devices
from luthier.runs.directory import RunDirectory
from luthier.runs.lineage import recipe_of
from luthier.runs.prepare import create_run, prepare
from luthier.runs.ranks import train_together
from luthier.runs.workflow import Inputs
from luthier.schema.load import load_recipe
from luthier.schema.results import TrainResult
from tiny import save_tiny_model, write_recipe

pytestmark = pytest.mark.timeout(300)
Events = list[dict[str, Any]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    save_tiny_model(folder / "model")
    write_recipe(
        folder, folder / "model", micro_batch_size=1, max_steps=8, evaluate_every=4, checkpoint_every=4
    )
    return folder


def started(place: Path, name: str, *words: str) -> RunDirectory:
    settings = ("method.dropout=0", "export.gguf=[]", "model.dtype=float32", *words)
    prepared = prepare(load_recipe(place / "recipe.yaml", settings), say=lambda _: None)
    return create_run(prepared, root=place / "runs", run_id=name)


def kept(events: Events, kind: str) -> Events:
    return [values for values in events if values["kind"] == kind]


@pytest.fixture(scope="module")
def alone(place: Path) -> tuple[TrainResult, Events]:
    run, events = started(place, "alone"), []
    work = Inputs(run, run.recipe)
    result = work.task.fit(work.data.splits, run.path, recipe_digest="one", on_metrics=events.append)
    return result, events


def test_two_processes_learn_what_one_does(place: Path, alone: tuple[TrainResult, Events]) -> None:
    wanted, before = alone
    events: Events = []
    result = train_together(started(place, "both", "training.devices=2"), "one", 2, on_metrics=events.append)
    one, two = kept(before, "step"), kept(events, "step")
    assert len(one) == len(two) == 8
    for left, right in zip(one, two, strict=True):
        assert right["loss"] == pytest.approx(left["loss"], rel=1e-4)
        assert right["grad_norm"] == pytest.approx(left["grad_norm"], rel=1e-3)
        assert [right[n] for n in ("tokens", "trained_tokens", "epoch")] == [
            left[n] for n in ("tokens", "trained_tokens", "epoch")
        ]
    assert one[0]["loss"] > 1.02 * one[-1]["loss"], "something was learned"
    validated = [[values["loss"] for values in kept(found, "validation")] for found in (before, events)]
    assert validated[1] == pytest.approx(validated[0], rel=1e-4)
    assert len(validated[0]) == 2
    assert result.best_step == wanted.best_step
    assert (result.tokens, result.trainable_parameters) == (wanted.tokens, wanted.trainable_parameters)


def test_two_processes_that_hold_one_model_together_learn_it_too(
    place: Path, alone: tuple[TrainResult, Events]
) -> None:
    run, events = started(place, "divided", "training.devices=2", "training.parallel.shard=2"), []
    assert run.recipe.training.parallel is not None
    assert run.recipe.training.parallel.replicate == 1
    result = train_together(run, "one", 2, on_metrics=events.append)
    steps, before = kept(events, "step"), kept(alone[1], "step")
    assert [event["loss"] for event in steps] == pytest.approx([event["loss"] for event in before], rel=1e-4)
    assert result.best_step == alone[0].best_step
    assert result.dtype == "float32"
    names = load_file(run.path / result.selected_checkpoint / "weights.safetensors")
    assert {name.rpartition(".")[2] for name in names} == {"lora_A", "lora_B"}
    assert result.trainable_parameters == sum(weight.numel() for weight in names.values())


def test_one_goes_on_where_two_ended_and_a_dead_process_ends_the_other(place: Path) -> None:
    run = started(place, "killed", "training.devices=2")
    first: Events = []

    def kill_one(values: dict[str, Any]) -> None:
        first.append(values)
        if values["kind"] == "checkpoint":
            (other,) = [one for one in ranks() if one.environ()["RANK"] == "1"]
            os.kill(other.pid, signal.SIGKILL)

    with pytest.raises(TrainingError, match=r"luthier train --resume|was killed by SIGKILL"):
        train_together(run, "two", 2, on_metrics=kill_one)
    assert ranks() == [], "nobody is left behind"
    work, second = Inputs(run, run.recipe), []
    work.task.fit(work.data.splits, run.path, recipe_digest="two", on_metrics=second.append)
    assert second[0]["kind"] == "resumed"
    assert second[0]["step"] == 4
    assert kept(second, "step")[-1]["step"] == 8


def test_other_devices_are_laid_out_anew(place: Path) -> None:
    derived = started(place, "laid", "training.devices=2")
    given = started(place, "given", "training.devices=2", "training.parallel.shard=2")
    for run in (derived, given):
        one = recipe_of(run, ("training.devices=1",), keep=True)
        assert one.training.parallel is None
        assert not any("parallel" in key for key in one.sources)
        kept = recipe_of(run, ("training.epochs=9",), keep=True)
        assert kept.training.parallel == run.recipe.training.parallel
    again = recipe_of(given, ("training.epochs=9",), keep=False).training.parallel
    assert again is not None
    assert (again.replicate, again.shard) == (None, 2)
    assert recipe_of(derived, ("training.epochs=9",), keep=False).training.parallel is None


def ranks() -> list[psutil.Process]:
    return [one for one in psutil.Process().children() if "luthier.runs.rank" in one.cmdline()]


def test_what_a_process_refuses_is_told_in_its_words(place: Path) -> None:
    run = started(place, "refused", "training.devices=2")
    (place / "model" / "model.safetensors").rename(place / "model" / "away")
    try:
        with pytest.raises(LuthierError, match="no weights"):
            train_together(run, "three", 2, on_metrics=lambda _: None)
    finally:
        (place / "model" / "away").rename(place / "model" / "model.safetensors")


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (("training.devices=2", "training.batch_size=3"), RecipeError, "not a multiple of"),
        (("training.devices=4096", "training.batch_size=4096"), UsageError, "cores"),
    ],
)
def test_what_cannot_be_shared_is_refused(place: Path, words: tuple[str, ...], kind: Any, said: str) -> None:
    with pytest.raises(kind, match=said):
        started(place, "never", *words)


def test_devices_that_are_not_there_or_not_alike_are_refused(place: Path) -> None:
    from luthier.planning.hypothetical import parse_hardware

    recipe = load_recipe(place / "recipe.yaml", ("training.devices=4",))
    two = parse_hardware("2xh100")
    with pytest.raises(UsageError, match="this machine has 2"):
        check_devices(recipe, two, "cuda")
    mixed = two.model_copy(
        update={"accelerators": (two.accelerators[0], two.accelerators[1].model_copy(update={"name": "T4"}))}
    )
    with pytest.raises(Unsupported, match="different kinds"):
        check_devices(load_recipe(place / "recipe.yaml", ("training.devices=2",)), mixed, "cuda")
    pairs = load_recipe(place / "recipe.yaml", ("training.devices=2", "task=similarity"))
    with pytest.raises(Unsupported, match="on one device"):
        check_devices(pairs, two, "cuda")
