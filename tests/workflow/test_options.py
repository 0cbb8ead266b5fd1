"""Options of a full fine-tuning through the command line: planned, trained, shipped as asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from command import luthier, says
from tiny import save_tiny_model, write_recipe

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(600)]

QUICK = ("evaluation.max_rows=2", "evaluation.floor_rows=0", "evaluation.probe_rows=0", "evaluation.shots=0",
         "model.dtype=float32", "method.name=full", "training.max_steps=12")  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    save_tiny_model(folder / "model")
    text = write_recipe(folder, folder / "model", learning_rate=2e-3, checkpoint_every=4).read_text()
    (folder / "recipe.yaml").write_text(text.replace("{name: lora, rank: 4, dropout: 0.1}", "{name: full}"))
    return folder


def test_the_average_of_a_training_by_muon_is_shipped(place: Path) -> None:
    asked = ("training.optimizer=muon", "training.ema=0.7", "training.select=ema", "training.neftune_alpha=5")
    luthier(place, "train", "recipe.yaml", "name=average", *asked, *QUICK)
    (run,) = (place / "runs").glob("average-*")
    (shipped,) = (run / "artifacts").rglob("model.safetensors")
    merged, last = load_file(shipped), run / "checkpoints" / "step-00000012"
    average, weights = load_file(last / "average.safetensors"), load_file(last / "weights.safetensors")
    assert json.loads((run / "train.json").read_text())["result"]["selected_checkpoint"].endswith("00000012")
    for name, value in average.items():
        assert torch.equal(merged[name], value), name
    assert any(not torch.equal(average[name], weights[name]) for name in average)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    watched = [line for line in lines if line["kind"] == "validation"]
    assert watched
    assert all(line["average_loss"] != line["loss"] for line in watched)
    saved = [line for line in lines if line["kind"] == "checkpoint"]
    assert [line["step"] for line in saved][-1] == 12
    assert all(line["stalled"] >= 0 for line in saved)


def test_updates_in_the_backward_pass_end_where_updates_after_it_do(place: Path) -> None:
    ends = []
    for name, at_once in (("after", "false"), ("within", "true")):
        asked = (f"training.update_in_backward={at_once}", "training.max_grad_norm=0",
                 "training.micro_batch_size=4", "export.adapter=false")  # fmt: skip
        luthier(place, "train", "recipe.yaml", f"name={name}", *asked, *QUICK)
        (run,) = (place / "runs").glob(f"{name}-*")
        ends.append(load_file(run / "checkpoints" / "step-00000012" / "weights.safetensors"))
    assert all(torch.equal(one, ends[1][name]) for name, one in ends[0].items())


def test_what_does_not_go_together_is_refused_before_anything_loads(place: Path) -> None:
    said = says(place, "train", "recipe.yaml", "training.update_in_backward=true", *QUICK, code=2)
    assert "max_grad_norm" in said
    said = says(place, "plan", "recipe.yaml", "training.optimizer=muon", "method.name=lora", code=2)
    assert "Muon" in said
