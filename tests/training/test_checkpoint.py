"""Checkpoints are whole or not there."""

import errno
import json
import os
import random
import resource
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from luthier.errors import CheckpointError, DoesNotFit
from luthier.training import checkpoint, manifest
from luthier.training.checkpoint import Position


def save(directory, step, digest="r", size=100, **kwargs):
    weights = {"a": torch.full((size,), float(step)), "b": torch.ones(2, 3)}
    optimizer = {"state": {0: {"exp_avg": torch.arange(size)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    position = Position(step=step, epoch=1, step_in_epoch=2, best_loss=0.5, best_step=step)
    return checkpoint.save(
        directory, position, weights=weights, optimizer=optimizer, recipe_digest=digest, **kwargs
    )


def test_what_is_saved_is_loaded(tmp_path):
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    folder = save(tmp_path, 12)
    expected = random.random(), np.random.rand(), torch.rand(3)
    loaded = checkpoint.load(folder, recipe_digest="r")
    assert loaded.position == Position(step=12, epoch=1, step_in_epoch=2, best_loss=0.5, best_step=12)
    assert torch.equal(loaded.weights["a"], torch.full((100,), 12.0))
    assert torch.equal(loaded.optimizer["state"][0]["exp_avg"], torch.arange(100))
    checkpoint.set_random_state(loaded.random)
    assert (random.random(), np.random.rand()) == expected[:2]
    assert torch.equal(torch.rand(3), expected[2])


FILES = ["weights.safetensors", "optimizer.pt", "random.pt", "state.json", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("fault", ["missing", "short", "flipped", "empty"])
def test_a_torn_checkpoint_is_never_loaded(tmp_path, name, fault):
    save(tmp_path, 3)
    file = save(tmp_path, 5) / name
    content = bytearray(file.read_bytes())
    if fault == "missing":
        file.unlink()
    elif fault == "short":
        file.write_bytes(content[:-7])
    elif fault == "empty":
        file.write_bytes(b"")
    else:
        # A flipped byte of the manifest may hit a space; its first brace is certain to matter.
        content[0 if name == "manifest.json" else len(content) // 2] ^= 1
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match="torn"):
        checkpoint.load(tmp_path / "step-00000005")
    with pytest.raises(CheckpointError, match="torn"):
        checkpoint.load_weights(tmp_path / "step-00000005")
    said = []
    loaded = checkpoint.load_newest(tmp_path, recipe_digest="r", say=said.append)
    assert loaded is not None
    assert loaded.position.step == 3
    assert len(said) == 1
    assert "step 5 is torn" in said[0]
    # Writing that step again mends it.
    save(tmp_path, 5)
    assert checkpoint.load(tmp_path / "step-00000005").position.step == 5


def test_another_recipe_is_refused(tmp_path):
    save(tmp_path, 3, digest="theirs")
    with pytest.raises(CheckpointError, match="another recipe") as error:
        checkpoint.load_newest(tmp_path, recipe_digest="ours")
    assert error.value.hint
    assert checkpoint.load_newest(tmp_path / "none", recipe_digest="ours") is None


def test_an_end_before_the_rename_leaves_no_checkpoint(tmp_path):
    save(tmp_path, 3)
    code = f"""
    import os, signal, torch
    from pathlib import Path
    from luthier.training import checkpoint, manifest
    checkpoint.save(
        Path({str(tmp_path)!r}), checkpoint.Position(step=4), weights={{"a": torch.ones(9)}}, optimizer={{}},
        recipe_digest="r", before_rename=lambda: os.kill(os.getpid(), signal.SIGKILL),
    )
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr
    assert (tmp_path / "step-00000004.part").is_dir()
    assert manifest.steps(tmp_path) == [3]
    loaded = checkpoint.load_newest(tmp_path, recipe_digest="r")
    assert loaded is not None
    assert loaded.position.step == 3
    save(tmp_path, 4)
    checkpoint.prune(tmp_path, keep_last=5, best_step=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def test_a_full_disk_leaves_the_last_one(tmp_path):
    save(tmp_path, 3)

    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DoesNotFit, match=r"disk is full.*step 3 is untouched") as error:
        save(tmp_path, 4, before_rename=full)
    assert "resume" in error.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]
    assert manifest.is_whole(tmp_path / "step-00000003", "r")


@pytest.mark.parametrize("size", [100, 40_000])
def test_a_write_that_fails_half_way_leaves_the_last_one(tmp_path, size):
    """The system refuses to let a file grow: in the weights, or later in the optimiser's file."""
    save(tmp_path, 3, size=10)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500 if size == 100 else 20_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"step 4 cannot be written.*step 3 is untouched"):
            save(tmp_path, 4, size=size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_newest_and_best_are_kept(tmp_path):
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step)
    assert checkpoint.prune(tmp_path, keep_last=2, best_step=2) == [1, 3]
    assert manifest.steps(tmp_path) == [2, 4, 5]


def test_what_cannot_be_deleted_yet_ends_no_training(tmp_path, monkeypatch):
    """As on a network's disk, where a file that is read elsewhere keeps its folder from going."""
    for step in (1, 2, 3):
        save(tmp_path, step)
    rmdir = os.rmdir

    def busy(path, *args, **named):
        raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    monkeypatch.setattr(os, "rmdir", busy)
    assert checkpoint.prune(tmp_path, keep_last=2, best_step=None) == [1]
    assert manifest.steps(tmp_path) == [2, 3]
    assert (tmp_path / "step-00000001.part").is_dir()
    monkeypatch.setattr(os, "rmdir", rmdir)
    assert checkpoint.prune(tmp_path, keep_last=2, best_step=None) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_the_manifest_names_every_file(tmp_path):
    folder = save(tmp_path, 1)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    del manifest["files"]["optimizer.pt"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="too few"):
        checkpoint.load(folder)
