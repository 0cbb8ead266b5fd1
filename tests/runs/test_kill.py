"""Kill the worker at random moments: the run goes on and its trajectory is the uninterrupted one's."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from luthier.runs.directory import RunDirectory
from luthier.runs.process import alive, current_state, kill_group
from tiny import save_tiny_model, write_recipe

TRAJECTORY = ("loss", "grad_norm", "learning_rate", "tokens", "trained_tokens", "epoch")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kill")
    save_tiny_model(folder / "model")
    write_recipe(folder, folder / "model", epochs=2, checkpoint_every=3, evaluate_every=6)
    return folder


def luthier(place: Path, *words: str) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "LUTHIER_RUNS": str(place / "runs"),
        "LUTHIER_CACHE": str(place / "cache"),
        "OMP_NUM_THREADS": "1",
        "CI": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "luthier", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[bytes]) -> str:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err.decode()[-3000:]
    return out.decode()


def trajectory(run: RunDirectory) -> dict[int, tuple[Any, ...]]:
    """Step -> what it came to; a step that was done twice must have come to the same."""
    steps: dict[int, tuple[Any, ...]] = {}
    for values, _ in run.lines("metrics"):
        if values["kind"] == "step":
            figures = tuple(values[name] for name in TRAJECTORY)
            assert steps.setdefault(values["step"], figures) == figures
    return steps


def started(place: Path, name: str) -> RunDirectory:
    """Start a run, and wait until its worker has a name."""
    before = set((place / "runs").glob("*")) if (place / "runs").exists() else set()
    finish(luthier(place, "train", str(place / "recipe.yaml"), f"name={name}", "--detach"))
    (path,) = set((place / "runs").glob("*")) - before
    run = RunDirectory(path)
    wait(run, lambda: run.status.worker is not None)
    return run


def wait(run: RunDirectory, until: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, (run.status, (run.path / "log.txt").read_text()[-2000:])
        time.sleep(0.02)


def test_twenty_kills_leave_the_same_trajectory(place: Path) -> None:
    straight = started(place, "straight")
    wait(straight, lambda: current_state(straight) == "done")
    expected = trajectory(straight)
    assert len(expected) == 48

    draw = random.Random(11)
    run = started(place, "killed")
    kills = 0
    while current_state(run) != "done":
        worker = run.status.worker
        assert worker is not None
        time.sleep(draw.uniform(0.0, 0.6) if kills % 2 else 0.0)
        step = run.status.step
        if kills < int(os.environ.get("LUTHIER_TEST_KILLS", "6")):
            # Half of the kills fall anywhere, half within the training.
            if kills % 2 == 0 and step < 48:
                wait(run, lambda step=step: run.status.step > step or current_state(run) != "running")
            kill_group(worker)
            wait(run, lambda worker=worker: not alive(worker))
            kills += 1
            assert current_state(run) in ("lost", "done")
        if current_state(run) == "lost":
            finish(luthier(place, "train", "--resume", run.id, "--detach"))
            wait(run, lambda worker=worker: run.status.worker not in (None, worker))
        else:
            time.sleep(0.05)
    assert kills > 0
    assert trajectory(run) == expected
    assert run.stage_values("tuned") is not None
    for split, result in (run.stage_values("tuned") or {}).items():
        assert [r["answer"] for r in result["rows"]] == [
            r["answer"] for r in (straight.stage_values("tuned") or {})[split]["rows"]
        ]


def test_killing_the_command_leaves_the_run_working(place: Path) -> None:
    process = luthier(place, "train", str(place / "recipe.yaml"), "name=orphan")
    end = time.monotonic() + 120
    runs: list[Path] = []
    while not runs and time.monotonic() < end:
        runs = [path.parent for path in (place / "runs").glob("orphan-*/status.json")]
        time.sleep(0.05)
    run = RunDirectory(runs[0])
    wait(run, lambda: run.status.worker is not None)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait(run, lambda: current_state(run) == "done")
    assert len(trajectory(run)) == 48


def test_control_c_once_stops_and_saves(place: Path) -> None:
    process = luthier(place, "train", str(place / "recipe.yaml"), "name=stopped", "training.epochs=40")
    end = time.monotonic() + 120
    runs: list[Path] = []
    while not runs and time.monotonic() < end:
        runs = [path.parent for path in (place / "runs").glob("stopped-*/status.json")]
        time.sleep(0.05)
    run = RunDirectory(runs[0])
    wait(run, lambda: run.status.step > 5)
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err.decode()[-2000:]
    assert b"--resume" in err
    assert current_state(run) == "stopped"
    assert any((run.path / "checkpoints").iterdir())
