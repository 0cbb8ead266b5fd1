"""A run tells what it came to, and the next plan here knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from command import luthier, says
from luthier.planning.measured import read_measurements
from luthier.runs.directory import RunDirectory
from luthier.runs.recorder import CORRECT_AT, SETTLED, Pace, Recorder
from luthier.runs.reporting import make_markdown
from luthier.schema.base import Range
from luthier.schema.estimate import Estimate, Phase, TrainingShape
from luthier.schema.recipe import DataChoice, ModelChoice, Recipe, TrainingChoice
from luthier.schema.run import Planned, Status
from tiny import save_tiny_model, write_recipe


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    save_tiny_model(folder / "model")
    write_recipe(folder, folder / "model")
    return folder


def test_a_run_measures_itself_and_the_next_one_starts_from_that(place: Path) -> None:
    done = luthier(place, "train", str(place / "recipe.yaml"), "name=first")
    (path,) = (place / "runs").glob("first-*")
    run = RunDirectory(path)
    (row,) = read_measurements(place / "cache" / "measurements" / "training.jsonl")
    assert row.run == run.id
    assert row.steps == 24
    assert {"load", "forward", "backward", "optimizer", "evaluate"} <= set(row.phases)
    assert row.tokens == sum(v["tokens"] for v, _ in run.lines("metrics") if v["kind"] == "step")
    assert 0 < row.seconds < 60
    correction = run.status.correction
    assert correction is not None
    assert correction.step == CORRECT_AT
    assert correction.predicted_seconds == row.predicted.seconds
    assert f"after {CORRECT_AT} steps:" in done.stdout + done.stderr
    steps = [v for v, _ in run.lines("metrics") if v["kind"] == "step"]
    assert all(v["mfu"] > 0 and v["data_wait"] >= 0 for v in steps)
    assert steps[-1]["seconds_left"] < steps[2]["seconds_left"]
    shown = says(place, "runs", "show", run.id)
    assert "memory, backward" in shown
    assert "attention flash, one document at a time" in shown
    assert "memory predicted | measured" in make_markdown(run)
    planned = json.loads(says(place, "plan", str(place / "recipe.yaml"), "--json"))
    again = json.loads(says(place, "train", str(place / "recipe.yaml"), "--dry-run", "--json"))
    assert again["estimate"]["basis"] == "measured"
    assert any(a.startswith("measured here: 1 run of this kind") for a in again["estimate"]["assumptions"])
    assert planned["estimate"] == again["estimate"], "one prediction, whoever asks"


class Board:
    """Keeps what would be written of a run's state."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.state: dict[str, Any] = {}

    def set(self, **changes: Any) -> None:
        self.state |= changes

    def event(self, event: str, **values: Any) -> None:
        self.events.append((event, values))


def step(number: int, total: int, *, tokens: int, done: int, seconds: float) -> dict[str, Any]:
    return {
        "kind": "step", "step": number, "total_steps": total, "tokens": tokens, "total_tokens": done,
        "seconds": seconds, "tokens_per_second": tokens / seconds, "loss": 1.0, "peak_memory": 3 << 30,
    }  # fmt: skip


def test_time_left_goes_by_tokens_and_the_prediction_stays(tmp_path: Path) -> None:
    """The first steps are the largest: by steps they would promise far too long a training."""
    recipe = Recipe(
        model=ModelChoice(id="/m", dtype="float32"),
        data=DataChoice(train=("/a",)),
        training=TrainingChoice(evaluate_every=10),
    )
    run = RunDirectory.create(recipe, root=tmp_path, run_id="r")
    said = Range(low=1, expected=2, high=3)
    run.save_stage("plan", "", Estimate(
        phases=(Phase(name="forward", parts={"weights": 1}),), tensors=said, process=said, seconds=said,
        trainable_parameters=1, total_parameters=1, flops=1e9, basis="formula",
    ))  # fmt: skip
    shape = TrainingShape(micro_batch_size=1, sequence_length=8)
    run.save_stage("planned", "", Planned(shape=shape, tokens=10_000, steps=20, flops=1e6))
    run.save_stage("env", "", {"probe": {"float32": 1e9}})
    run.save_stage("model", "", {"device": "cpu"})
    board = Board()
    recorder = Recorder(run, board)  # type: ignore[arg-type]
    done = 0
    for number, tokens in enumerate([1000, 1000, 500, 500, 500], 1):
        done += tokens
        slow = 3.0 if number == 1 else 1.0  # the first step also fetches memory and chooses kernels
        recorder(step(number, 20, tokens=tokens, done=done, seconds=slow * tokens / 1000))
    lines = [values for values, _ in run.lines("metrics")]
    assert lines[-1]["seconds_left"] == pytest.approx(6.5, rel=0.01)
    assert lines[-1]["mfu"] == pytest.approx(1.0)
    (event, values), *rest = [entry for entry in board.events if entry[0] == "corrected"]
    assert not rest, "said once"
    assert event == "corrected"
    assert values["step"] == 5
    assert values["seconds"]["expected"] == pytest.approx(3 + 1 + 1.5 + 6.5, rel=0.01)
    assert values["predicted_seconds"] == said.model_dump()
    assert values["memory"]["expected"] == 3 << 30
    run.set_status(Status(state="running", correction=board.state["correction"]))
    again = Recorder(run, board)  # type: ignore[arg-type]
    again(step(6, 20, tokens=500, done=4000, seconds=0.5))
    assert len([entry for entry in board.events if entry[0] == "corrected"]) == 1, (
        "a resumed run says it once"
    )


def test_one_stall_among_few_steps_does_not_promise_a_longer_training() -> None:
    """Steps of a 0.5B (a seen row of benchmarks/memory/grid.jsonl): 67 ms followed, their mean is 75."""
    seconds = [10.7593, 0.0710, 0.0668, 0.0644, 0.0710, 0.0681, 0.1108, 0.0670, 0.0799, 0.0691]
    followed = (0.0792 + 0.0584 + 0.0643) / 3
    pace = Pace(None, lambda *_: 0)
    for one in seconds:
        pace.step({"seconds": one})
    assert pace.rate.expected == pytest.approx(followed, rel=0.05)
    assert pace.rate.low < followed < pace.rate.high
    assert pace.left({"step": 10, "total_steps": 13}).expected == pytest.approx(3 * followed, rel=0.05)
    # A stall that comes again and again is a part of the training's time.
    for number in range(SETTLED):
        pace.step({"seconds": 1.0 if number % 4 == 0 else 0.07})
    assert pace.rate.expected > 0.2
