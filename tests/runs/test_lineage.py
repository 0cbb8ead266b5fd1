"""Runs that come from runs: the same again, longer, otherwise, from an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from command import luthier
from luthier.runs.directory import RunDirectory
from luthier.schema.run import Origin
from tiny import save_tiny_model, write_recipe


def made(place: Path, *words: str) -> tuple[RunDirectory, str]:
    """The run that a command makes, and what it says."""
    before = set((place / "runs").glob("*")) if (place / "runs").exists() else set()
    done = luthier(place, "train", *words)
    (path,) = set((place / "runs").glob("*")) - before
    return RunDirectory(path), done.stdout + done.stderr


def steps(run: RunDirectory) -> dict[int, tuple[Any, ...]]:
    names = ("loss", "grad_norm", "learning_rate", "tokens", "epoch")
    return {v["step"]: tuple(v[n] for n in names) for v, _ in run.lines("metrics") if v["kind"] == "step"}


def origin(run: RunDirectory) -> Origin:
    found = run.stage("origin", Origin)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lineage")
    save_tiny_model(folder / "model")
    write_recipe(folder, folder / "model", checkpoint_every=6, evaluate_every=12, keep_last=9)
    return folder


@pytest.fixture(scope="module")
def parent(place: Path) -> RunDirectory:
    run, _ = made(place, str(place / "recipe.yaml"), "name=parent")
    return run


def test_a_clone_is_the_same_run(place: Path, parent: RunDirectory) -> None:
    run, _ = made(place, "--clone", parent.id)
    assert steps(run) == steps(parent)
    assert origin(run).changed == {}
    other, said = made(place, "--clone", parent.id, "method.rank=2")
    assert origin(other).kind == "clone"
    assert {k: v.after for k, v in origin(other).changed.items() if k != "name"} == {
        "method.rank": "2", "method.alpha": "4.0",
    }  # fmt: skip
    assert other.recipe.sources["method.alpha"] == "twice the rank of 2"
    assert "a new run with the recipe of" in said
    assert "a new run with the recipe of" in luthier(place, "runs", "show", other.id).stdout


def test_a_longer_run_goes_on_where_the_parent_ended(place: Path, parent: RunDirectory) -> None:
    run, said = made(place, "--extend", parent.id, "training.epochs=2")
    assert min(steps(run)) == 25
    assert max(steps(run)) == 48
    found = origin(run)
    assert (found.kind, found.parent, found.step) == ("extend", parent.id, 24)
    assert found.changed["training.epochs"].model_dump() == {"before": "1.0", "after": "2.0"}
    assert "laid over all 48 steps" in found.rule
    assert found.rule in " ".join(said.split())
    whole, _ = made(place, str(place / "recipe.yaml"), "name=whole", "training.epochs=2")
    # The rate is that of a run of two epochs from the beginning, and so are the rows.
    for step, values in steps(run).items():
        assert values[2:] == steps(whole)[step][2:]
    assert steps(run)[25][0] < steps(parent)[1][0]
    refused = luthier(place, "train", "--extend", parent.id, "training.epochs=1", code=2)
    assert "has done 24 steps" in refused.stderr
    assert "for example training.epochs=2" in refused.stderr
    refused = luthier(
        place, "train", "--extend", parent.id, "training.epochs=2", "training.max_steps=9", code=2
    )
    assert "training.max_steps=9 ends it there: give more of them (training.max_steps=48)" in " ".join(
        refused.stderr.split()
    )


def test_a_branch_without_changes_is_the_parent_from_there_on(place: Path, parent: RunDirectory) -> None:
    same, _ = made(place, "--branch", f"{parent.id}@12")
    assert steps(same) == {step: values for step, values in steps(parent).items() if step > 12}
    other, _ = made(
        place, "--branch", f"{parent.id}@12", "training.learning_rate=1e-4", "training.schedule=constant"
    )
    assert {values[2] for values in steps(other).values()} == {1e-4}
    assert origin(other).step == 12
    assert set(origin(other).changed) == {"training.learning_rate", "training.schedule"}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--branch", "{parent}@7"), 2, "no whole checkpoint of step 7"),
        (
            ("--branch", "{parent}@12", "method.rank=2"),
            2,
            "method.rank cannot be changed from a checkpoint on",
        ),
        (("--branch", "{parent}@12", "training.batch_size=8"), 2, "training.batch_size cannot be changed"),
        (("--branch", "{parent}@last"), 2, "step 24 is not before the end"),
        (("--clone", "nobody"), 2, "there is no run 'nobody'"),
        (("--clone", "{parent}", "--resume", "{parent}"), 2, "name one thing to train"),
        (("--init-from", "{parent}"), 2, "name one thing to train"),
    ],
)
def test_what_cannot_be_is_said(place: Path, parent: RunDirectory, words: Any, code: int, said: str) -> None:
    done = luthier(place, "train", *(word.format(parent=parent.id) for word in words), code=code)
    assert done.returncode == code, done.stderr
    assert said in " ".join(done.stderr.split())


def test_changed_data_are_refused(place: Path, parent: RunDirectory) -> None:
    rows = place / "train.jsonl"
    text = rows.read_text()
    try:
        rows.write_text("".join(text.splitlines(keepends=True)[:-1]))
        done = luthier(place, "train", "--branch", f"{parent.id}@12", code=1)
    finally:
        rows.write_text(text)
    assert "the data files have changed" in " ".join(done.stderr.split())


def test_adapters_start_from_those_of_a_run(place: Path, parent: RunDirectory) -> None:
    run, said = made(place, str(place / "recipe.yaml"), "name=warm", "--init-from", parent.id)
    assert "starts from the adapter of" in said
    learned = steps(parent)[1][0] - steps(parent)[24][0]
    gone_on = steps(parent)[1][0] - steps(run)[1][0]
    assert gone_on > learned / 2 > 0.1, "what was learned is there at the first step"
    config = json.loads((parent.path / "artifacts" / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 4
    refused = luthier(
        place,
        "train",
        str(place / "recipe.yaml"),
        "method.rank=8",
        "--init-from",
        str(parent.path / "artifacts/adapter"),
        code=2,
    )
    assert "add method.rank=4" in " ".join(refused.stderr.split())
