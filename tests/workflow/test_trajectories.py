"""Fifty steps of each method through the command line come to what they came to before.

A change of `trajectories.json` is a change of what is trained: the commit that makes one says why. Written
anew by ``LUTHIER_WRITE_TRAJECTORIES=1 pytest tests/workflow/test_trajectories.py``.
"""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from command import luthier
from tiny import save_tiny_model, write_recipe

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(600)]

GOLDEN = Path(__file__).with_name("trajectories.json")
STEPS = 50
METHODS = {
    "full": ["method.name=full", "training.learning_rate=2e-3"],
    "lora": ["method.name=lora", "method.rank=4", "training.learning_rate=1e-2"],
    "qlora": ["method.name=qlora", "method.rank=4", "training.learning_rate=1e-2"],
}
WITHOUT = (
    "evaluation.max_rows=1",
    "evaluation.floor_rows=0",
    "evaluation.probe_rows=0",
    "evaluation.shots=0",
    "evaluation.samples=0",
    "export.merged=false",
    "export.adapter=false",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trajectories")
    save_tiny_model(folder / "model", hidden=64)
    text = write_recipe(folder, folder / "model", epochs=3, max_steps=STEPS, evaluate_every=10).read_text()
    text = text.replace("{name: lora, rank: 4, dropout: 0.1}", "{name: lora}")
    (folder / "recipe.yaml").write_text(text)
    return folder


def trajectory(place: Path, method: str) -> dict[str, list[float]]:
    """Loss and gradient norm of each step, and the validation losses, of a run through the command line."""
    words = [f"name={method}", "model.dtype=float32", *METHODS[method], *WITHOUT]
    luthier(place, "train", "recipe.yaml", *words)
    (run,) = (place / "runs").glob(f"{method}-*")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    return {
        "loss": [round(line["loss"], 6) for line in steps],
        "grad_norm": [round(line["grad_norm"], 6) for line in steps],
        "validation": [round(line["loss"], 6) for line in lines if line["kind"] == "validation"],
    }


@pytest.mark.parametrize("method", list(METHODS))
def test_fifty_steps_are_those_of_before(place: Path, method: str) -> None:
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    found = trajectory(place, method)
    assert len(found["loss"]) == STEPS
    assert len(found["validation"]) == 5
    assert found["validation"][-1] < 0.85 * found["loss"][0], "it learns"
    golden: dict[str, Any] = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("LUTHIER_WRITE_TRAJECTORIES"):
        versions = {name: version(name) for name in ("torch", "transformers")}
        golden[method] = {"versions": versions, **found}
        GOLDEN.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
    expected = golden[method]
    # Processors and versions of torch round in other places, which fifty steps make larger.
    assert found["loss"] == pytest.approx(expected["loss"], rel=2e-3)
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=2e-2)
    assert found["validation"] == pytest.approx(expected["validation"], rel=2e-3)
