"""Sequences, matrices, experts and layers divided over two processes: losses and gradients of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import parallel_ranks
from parallel_ranks import CASES, alone

pytestmark = [
    pytest.mark.timeout(280),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
]
NEAR = {"rtol": 2e-4, "atol": 2e-5}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes computed, by case."""
    folder = tmp_path_factory.mktemp("together")
    tests = Path(parallel_ranks.__file__).parent
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), *sys.path])}
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "parallel_ranks", str(folder)],
            env={**surroundings, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        words = [child.communicate(timeout=240)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0, 0], "\n".join(words)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", sorted(CASES))
def test_two_processes_compute_what_one_does(name: str, found: list[dict[str, Any]]) -> None:
    case = CASES[name]
    wanted = alone(case)
    for both in found:
        got = both[name]
        assert got["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
        assert got["norm"] == pytest.approx(wanted["norm"], rel=1e-4)
    grads = found[0][name]["grads"]
    assert grads.keys() == wanted["grads"].keys()
    for weight, grad in wanted["grads"].items():
        torch.testing.assert_close(grads[weight], grad, **NEAR, msg=lambda text, w=weight: f"{w}: {text}")
    assert max(float(grad.abs().max()) for grad in grads.values()) > 1e-2
