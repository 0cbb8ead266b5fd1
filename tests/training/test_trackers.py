"""Metrics arrive in each tracker under their names and steps; what is missing is said with its command."""

from __future__ import annotations

import gzip
import json
import sys
from types import ModuleType

import pytest
import torch

from luthier.errors import Unsupported, UsageError
from luthier.models.lora import add_lora
from luthier.schema.recipe import Lora, TrainingChoice
from luthier.tasks.causal import causal_objective
from luthier.training.loop import fit
from luthier.training.trackers import check_trackers, flat, open_trackers

CONFIG = {"training": {"epochs": 2, "trackers": ["wandb"], "patience": None}, "seed": 17}
EVENTS = [
    {"kind": "step", "step": 1, "total_steps": 2, "loss": 2.5, "learning_rate": 0.1, "grad_norm": 0.5},
    {"kind": "note", "text": "not a metric"},
    {"kind": "validation", "step": 1, "loss": 2.25, "seconds": 0.1, "best": True},
    {"kind": "step", "step": 2, "total_steps": 2, "loss": 1.5, "learning_rate": 0.05, "grad_norm": None},
]
LOSSES = {1: 2.5, 2: 1.5}


def tell(name, folder, run="a-run"):
    said: list[str] = []
    with open_trackers((name,), run=run, folder=folder, config=CONFIG, say=said.append) as listeners:
        for event in EVENTS:
            for listener in listeners:
                listener(event)
    return said


def test_settings_are_flattened():
    assert flat(CONFIG) == {"training.epochs": 2, "training.trackers": "wandb", "seed": 17}


def test_what_is_not_installed_is_refused_with_its_command(monkeypatch):
    monkeypatch.setattr("luthier.training.trackers.find_spec", lambda name: None)
    check_trackers(())
    with pytest.raises(Unsupported, match="wandb, mlflow are not installed") as caught:
        check_trackers(("wandb", "mlflow"))
    assert "pip install wandb mlflow" in str(caught.value.hint)


def test_tensorboard_reads_what_was_written(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell("tensorboard", tmp_path)
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {event.step: event.value for event in found.Scalars("train/loss")} == LOSSES
    assert [event.value for event in found.Scalars("validation/loss")] == [2.25]
    assert [event.step for event in found.Scalars("train/grad_norm")] == [1]


@pytest.mark.filterwarnings("ignore")
def test_mlflow_keeps_one_run_over_a_resume(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tell("mlflow", tmp_path)
    tell("mlflow", tmp_path)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("luthier")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "a-run"
    assert run.data.params["training.epochs"] == "2"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert {entry.step: entry.value for entry in history} == LOSSES
    assert run.info.status == "FINISHED"


@pytest.mark.filterwarnings("ignore")
def test_wandb_writes_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    tell("wandb", tmp_path)
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-a-run.wandb")
    written = file.read_bytes()
    assert b"train/loss" in written
    assert b"validation/loss" in written


class FakeTrackio(ModuleType):
    """Keeps the calls, with the names and arguments of trackio's documentation."""

    def __init__(self) -> None:
        super().__init__("trackio")
        self.calls: list[tuple[str, dict[str, object]]] = []

    def init(self, *, project, name, config, resume):
        self.calls.append(("init", {"project": project, "name": name, "config": config, "resume": resume}))

    def log(self, metrics, *, step):
        self.calls.append(("log", {"step": step, **metrics}))

    def finish(self):
        self.calls.append(("finish", {}))


def test_trackio_is_told_and_finished(tmp_path, monkeypatch):
    fake = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", fake)
    monkeypatch.setattr("luthier.training.trackers.find_spec", lambda name: fake)
    tell("trackio", tmp_path)
    names = [name for name, _ in fake.calls]
    assert names == ["init", "log", "log", "log", "finish"]
    assert fake.calls[0][1]["name"] == "a-run"
    assert {v["step"]: v["train/loss"] for _, v in fake.calls[1:4] if "train/loss" in v} == LOSSES


def test_a_tracker_that_fails_costs_the_run_nothing(tmp_path, monkeypatch):
    class Gone(FakeTrackio):
        def log(self, metrics, *, step):
            super().log(metrics, step=step)
            raise ConnectionError("the server is gone")

    fake = Gone()
    monkeypatch.setitem(sys.modules, "trackio", fake)
    monkeypatch.setattr("luthier.training.trackers.find_spec", lambda name: fake)
    assert tell("trackio", tmp_path) == ["trackio takes no more metrics: the server is gone"]
    assert [name for name, _ in fake.calls] == ["init", "log", "finish"]
    monkeypatch.setattr(fake, "init", lambda **_: 1 / 0)
    with pytest.raises(UsageError, match="trackio does not start: division by zero"):
        tell("trackio", tmp_path)


def test_a_profile_is_a_trace_of_the_steps_asked_for(tiny, make_source, make_documents, tmp_path):
    model = tiny()
    add_lora(model, Lora(rank=2), seed=0)
    choice = TrainingChoice(
        epochs=2, learning_rate=1e-3, batch_size=4, micro_batch_size=4, sequence_length=32, profile_steps=2,
        evaluate_every=9, activation_checkpointing="none",
    )  # fmt: skip
    notes = []
    fit(
        model, causal_objective(model), make_source(make_documents(12)), [], choice=choice, seed=5,
        directory=tmp_path, recipe_digest="r", device=torch.device("cpu"), on_metrics=notes.append,
    )  # fmt: skip
    path = tmp_path / "profile" / "steps-3-to-4.json.gz"
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    names = [event.get("name") for event in events if event.get("ph") == "X"]
    assert "aten::mm" in names or "aten::addmm" in names
    assert any("profile/steps-3-to-4.json.gz" in str(note.get("text")) for note in notes)
