"""Sequences, matrices, experts and layers divided over two processes: losses and gradients of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import parallel_ranks
from luthier.training.world import ALONE
from parallel_ranks import CASES, FITTED, alone, fitted

pytestmark = [
    pytest.mark.timeout(280),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
]
NEAR = {"rtol": 2e-4, "atol": 2e-5}


Found = list[dict[str, Any]]


def run(folder: Path, kind: str, count: int = 2) -> None:
    """Run so many processes of `parallel_ranks` to their end."""
    tests = Path(parallel_ranks.__file__).parent
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), *sys.path])}
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "parallel_ranks", str(folder), kind],
            env={**surroundings, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        words = [child.communicate(timeout=240)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0] * count, "\n".join(words)


def both(folder: Path, kind: str) -> Found:
    """What each of two processes computed on that kind of device, by case."""
    run(folder, kind)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return both(tmp_path_factory.mktemp("together"), "cpu")


@pytest.mark.parametrize("name", sorted(CASES))
def test_two_processes_compute_what_one_does(name: str, found: Found) -> None:
    hold(name, found)


def test_stages_round_a_weight_that_both_have_alike(found: Found) -> None:
    same_twins(found)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_compute_what_one_process_does(tmp_path: Path) -> None:
    found = both(tmp_path, "cuda")
    for name in CASES:
        hold(name, found)
    same_twins(found)


@pytest.mark.workflow
def test_groups_of_two_that_share_the_rows_train_what_one_does(tmp_path: Path) -> None:
    run(tmp_path, "four", 4)
    for side, case in FITTED.items():
        wanted = fitted(ALONE, case, tmp_path / "alone" / side)
        got = torch.load(tmp_path / f"{side}.pt")
        assert len(got) == 4
        for one, other in zip(got, wanted, strict=True):
            assert one == pytest.approx(other, rel=1e-4), side
        folder = Path("checkpoints") / "step-00000004" / "weights.safetensors"
        weights = load_file(tmp_path / "alone" / side / folder)
        found = load_file(tmp_path / side / folder)
        assert found.keys() == weights.keys()
        for name, weight in weights.items():
            torch.testing.assert_close(
                found[name], weight, rtol=1e-3, atol=1e-5, msg=lambda t, n=name, s=side: f"{s} {n}: {t}"
            )


def same_twins(found: Found) -> None:
    one, other = (part["twins"] for part in found)
    assert set(one) == set(other) == {"model.embed_tokens.weight"}
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name


def hold(name: str, found: Found) -> None:
    wanted = alone(CASES[name])
    for one in found:
        assert one[name]["loss"] == pytest.approx(wanted["loss"], rel=1e-5), name
        assert one[name]["norm"] == pytest.approx(wanted["norm"], rel=1e-4), name
    grads = found[0][name]["grads"]
    assert grads.keys() == wanted["grads"].keys()
    for weight, grad in wanted["grads"].items():
        torch.testing.assert_close(grads[weight], grad, **NEAR, msg=lambda t, w=weight: f"{name} {w}: {t}")
    assert max(float(grad.abs().max()) for grad in grads.values()) > 1e-2
