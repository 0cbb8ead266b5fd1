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


def started(folder: Path, cases: str, *layouts: str) -> Path:
    """Every training of the cases, in these layouts if any are named, in processes that start once."""
    paths = (HERE.parent / "src", HERE / "training", HERE)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    words = [
        sys.executable,
        "-m",
        "sharded_ranks",
        str(folder),
        cases,
        *([",".join(layouts)] if layouts else []),
    ]
    found = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    return folder


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
