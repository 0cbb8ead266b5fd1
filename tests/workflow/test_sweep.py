"""A real search, killed in the middle and gone on with; candidates side by side; score by rows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tiny import save_tiny_model, write_recipe

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(900)]


def started(folder: Path, *words: str) -> subprocess.Popen[str]:
    with (folder / "err.txt").open("a") as err:
        return subprocess.Popen(
            [sys.executable, "-m", "luthier", "sweep", *words],
            cwd=folder,
            env={**os.environ, "LUTHIER_RUNS": str(folder / "runs"), "CI": "1"},
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
        )


def sweep(folder: Path, *words: str) -> dict[str, Any]:
    process = started(folder, *words, "--json")
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, (folder / "err.txt").read_text()[-3000:]
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sweep")
    write_recipe(place, save_tiny_model(place / "model"), evaluate_every=4)
    recipe = place / "recipe.yaml"
    recipe.write_text(
        recipe.read_text().replace("16}", "16, probe_rows: 0, floor_rows: 0}") + "export: null\n"
    )
    return place


def test_a_search_survives_its_death(folder: Path) -> None:
    pytest.importorskip("optuna", reason="pip install 'luthier[sweep]'")
    words = ("recipe.yaml", "training.learning_rate=1e-4..5e-2:log", "method.rank=2,4", "--trials", "3")
    process = started(folder, *words, "--name", "hunt")
    result = folder / "runs" / "sweeps" / "hunt" / "result.json"
    until = time.monotonic() + 300
    while time.monotonic() < until and not (folder / "runs" / "hunt-001" / "metrics.jsonl").exists():
        assert process.poll() is None, (folder / "err.txt").read_text()[-3000:]
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = json.loads(result.read_text())
    assert [t["state"] for t in before["trials"]] == ["done", "running"]

    found = sweep(folder, "--resume", "hunt")
    assert len(found["trials"]) == 3
    assert found["trials"][0] == before["trials"][0]
    best = found["trials"][found["best"]]
    assert best["loss"] == min(t["loss"] for t in found["trials"] if t["state"] == "done")
    assert found["proved"] == [best["run"]]
    judged = [t["run"] for t in found["trials"] if (folder / "runs" / t["run"] / "tuned.json").exists()]
    assert judged == [best["run"]]
    assert found["comparisons"][0]["split"] == "test"
    assert "<figure" in (result.parent / "report.html").read_text()


def test_rows_and_models_are_ranked_on_the_same_rows(folder: Path) -> None:
    found = sweep(folder, "recipe.yaml", "--learning-curve", "8,24,96", "--name", "rows", "--jobs", "2")
    assert [t["rows"] for t in found["trials"]] == [8, 24, 96]
    assert {t["state"] for t in found["trials"]} == {"done"}
    assert {t["score"]["n"] for t in found["trials"]} == {12}
    losses = [t["loss"] for t in found["trials"]]
    assert losses[0] > losses[2]
    assert set(found["curves"]) == {""}
    steps = [
        json.loads((folder / "runs" / t["run"] / "train.json").read_text())["result"]["steps"]
        for t in found["trials"]
    ]
    assert steps == [2, 6, 24]

    other = save_tiny_model(folder / "other", hidden=16, seed=4)
    models = f"{folder / 'model'},{other},{folder / 'nothing'}"
    found = sweep(folder, "recipe.yaml", "training.max_steps=4", "--models", models, "--name", "two",
                  "--price-per-hour", "3600")  # fmt: skip
    first, second, third = found["trials"]
    assert (first["state"], second["state"], third["state"]) == ("done", "done", "failed")
    assert third["reason"]
    assert {first["difference"] is None, second["difference"] is None} == {True, False}
    assert first["cost"] == pytest.approx(first["seconds"])
    assert not (folder / "runs" / first["run"] / "artifacts.json").exists()
