"""A GPU that is not there any more, or stops answering, is told in words with the way on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from luthier.errors import TrainingError
from luthier.runs.directory import RunDirectory
from luthier.runs.gone import gpu_gone
from luthier.runs.prepare import create_run, prepare
from luthier.runs.process import torch_environment
from luthier.runs.ranks import train_together
from luthier.schema.load import load_recipe
from tiny import save_tiny_model, write_recipe

# As torch 2.11 and 2.13, NCCL and the driver put it.
STOPPED = (
    "CUDA error: uncorrectable ECC error encountered",
    "CUDA error: unknown error\nCUDA kernel errors might be asynchronously reported at some other API call",
    "Unable to determine the device handle for GPU0: 0000:0A:00.0: GPU is lost.",
)
BROKE_OFF = (
    "CUDA error: unspecified launch failure\nSearch for `cudaErrorLaunchFailure' in the CUDA documentation",
    "CUDA error: hardware stack error",
    "NCCL error in: ProcessGroupNCCL.cpp:94, unhandled cuda error, NCCL version 2.28.9\nLast error:\n"
    "Cuda failure 719 'unspecified launch failure'",
)
ABSENT = (
    "No CUDA GPUs are available",
    "CUDA error: invalid device ordinal",
    "CUDA error: no CUDA-capable device is detected",
    "Torch not compiled with CUDA enabled",
)
OTHERS = (
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: device-side assert triggered",
    "mat1 and mat2 shapes cannot be multiplied",
    "CUDA out of memory. Tried to allocate 2.00 GiB",
)


@pytest.mark.parametrize("text", STOPPED)
def test_a_gpu_that_stops_answering(text: str) -> None:
    said = gpu_gone(RuntimeError(text), "r-1")
    assert said is not None
    assert "stopped answering" in str(said)
    assert "\n" not in str(said)
    assert "luthier train --resume r-1" in str(said.hint)


@pytest.mark.parametrize("text", BROKE_OFF)
def test_a_kernel_that_breaks_off_is_not_told_as_a_lost_gpu(text: str) -> None:
    said = gpu_gone(RuntimeError(text), "r-1")
    assert said is not None
    assert "stopped answering" not in str(said)
    assert "a kernel broke off" in str(said)
    assert "Xid 13" in str(said.hint)
    assert "luthier train --resume r-1" in str(said.hint)


@pytest.mark.parametrize("text", ABSENT)
def test_a_gpu_that_is_not_there(text: str) -> None:
    said = gpu_gone(RuntimeError(text), "r-1")
    assert said is not None
    assert "is not there" in str(said)
    assert "--branch r-1@last" in str(said.hint)


@pytest.mark.parametrize("text", OTHERS)
def test_other_errors_are_what_they_are(text: str) -> None:
    assert gpu_gone(RuntimeError(text), "r-1") is None


def moved(tmp_path: Path, *words: str) -> RunDirectory:
    """A run whose plan is of a machine with GPUs."""
    save_tiny_model(tmp_path / "model")
    write_recipe(tmp_path, tmp_path / "model", max_steps=4)
    settings = ("training.micro_batch_size=1", "export.gguf=[]", *words)
    prepared = prepare(load_recipe(tmp_path / "recipe.yaml", settings), say=lambda _: None)
    run = create_run(prepared, root=tmp_path / "runs", run_id="moved")
    facts = run.stage_values("model")
    run.save_stage("model", "", {**facts, "device": "cuda"})
    return run


WHERE_NONE_IS = pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")


@pytest.mark.workflow
@WHERE_NONE_IS
def test_a_run_that_was_planned_for_a_gpu_says_that_there_is_none(tmp_path: Path) -> None:
    run = moved(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "luthier.runs.worker", str(run.path)],
        env=torch_environment(), capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    failure = run.status.failure
    assert done.returncode == 1
    assert failure is not None
    assert "the GPU that this run was planned for is not there" in failure.message
    assert "luthier train --resume moved" in str(failure.hint)


@WHERE_NONE_IS
def test_so_does_each_of_several_processes(tmp_path: Path) -> None:
    run = moved(tmp_path, "training.devices=2")
    with pytest.raises(TrainingError, match="the GPU that this run was planned for is not there"):
        train_together(run, "d", 2, on_metrics=lambda _: None)
