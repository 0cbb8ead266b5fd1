"""The whole way with a model that two devices hold together: base, training, proof, exports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command import says
from tiny import save_tiny_model, write_recipe

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(300)]


def test_a_divided_model_is_trained_proved_and_shipped_as_any_other(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    recipe = write_recipe(tmp_path, tmp_path / "model", max_steps=8, evaluate_every=4)
    words = ("method.name=qlora", "method.rank=4", "evaluation.max_rows=2", "evaluation.probe_rows=0")
    said = says(
        tmp_path, "train", str(recipe), *words, "model.dtype=float32", "--gpus", "2",
        "training.parallel.shard=2", "export.gguf=[]",
    )  # fmt: skip
    assert "training.parallel" in said
    (run,) = (tmp_path / "runs").iterdir()
    result = json.loads((run / "train.json").read_text())["result"]
    assert result["steps"] == 8
    assert result["first_loss"] > result["last_loss"]
    artifacts = json.loads((run / "artifacts.json").read_text())["result"]
    assert {"adapter", "merged"} <= {artifact["kind"] for artifact in artifacts}
    assert json.loads((run / "comparison.json").read_text())["result"]
    assert (run / "report.html").stat().st_size > 1000
