"""Trainings of `training/sharded_ranks.py`, and what they left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from luthier.training.manifest import CHECKPOINTS, OPTIMIZER, WEIGHTS, step_name

HERE = Path(__file__).parent
CRASHED = 70
"""What `sharded_ranks` ends with where a signal ended a process."""


def started(folder: Path, cases: str, *layouts: str) -> Path:
    """Every training of the cases, in these layouts if any are named, in processes that start once.

    A signal ended one of about a thousand such processes, within torch: then all are started once more, and
    the first one's words are printed. Returns the folder that holds them.
    """
    found = _run(folder, cases, layouts)
    if found.returncode == CRASHED:
        print(found.stderr)
        folder = folder / "again"
        folder.mkdir()
        found = _run(folder, cases, layouts)
    assert found.returncode == 0, f"{found.stderr[:3000]}\n...\n{found.stderr[-3000:]}"
    return folder


def _run(folder: Path, cases: str, layouts: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    paths = (HERE.parent / "src", HERE / "training", HERE)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "sharded_ranks", str(folder), cases]
    named = [",".join(layouts)] if layouts else []
    return subprocess.run([*words, *named], env=env, capture_output=True, text=True, check=False)


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in json.loads((folder / "events.json").read_text()) if event["kind"] == kind]


def saved(folder: Path, step: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights by name, and both moments of each by its number."""
    place = folder / CHECKPOINTS / step_name(step)
    states = torch.load(place / OPTIMIZER, weights_only=True)["state"]
    moments = {
        f"{number} {name}": value
        for number, state in states.items()
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and value.ndim
    }
    return load_file(place / WEIGHTS), moments


def assert_near(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], share: float) -> None:
    assert one.keys() == other.keys()
    assert one
    for name, tensor in one.items():
        apart = torch.linalg.vector_norm(tensor.float() - other[name].float())
        assert apart <= share * torch.linalg.vector_norm(tensor.float()), name
