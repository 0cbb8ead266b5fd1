"""Checkpoints that are whole or not there, and that a run goes on from exactly.

A checkpoint is a folder ``step-00000012``. It is written under another name, every file is brought
to the disk, the manifest with size and digest of each comes last, and one rename makes it exist. What
does not match its manifest is torn and never loaded: the one before it is taken, and that is said.
"""

from __future__ import annotations

import errno
import hashlib
import json
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.errors import CheckpointError, DoesNotFit, LuthierError
from luthier.training.manifest import (
    AVERAGE,
    MANIFEST,
    OPTIMIZER,
    PART,
    RANDOM,
    STATE,
    VERSION,
    WEIGHTS,
    check,
    is_whole,
    newest,
    step_name,
    steps,
    to_disk,
)


@dataclass(frozen=True)
class Position:
    """Where a run stands after a step; counts add up over all resumed parts."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    """Steps of this epoch that are done."""
    tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    peak_memory: int = 0
    training_peak: int = 0
    """Peak bytes since training began; 0 where the system cannot tell."""
    phase_memory: dict[str, int] = field(default_factory=dict)
    """Phase of a step -> peak bytes, of the steps whose phases were measured apart."""
    first_loss: float | None = None
    last_loss: float | None = None
    best_step: int | None = None
    best_loss: float | None = None
    threads: int = 1
    """Threads of torch: sums are split by them, so another number gives another rounding."""
    halvings: int = 0
    """How often the micro-batch was halved because memory ran out."""
    skipped: int = 0
    """Steps left out because they came to no number."""
    recent: list[float] = field(default_factory=list)
    """Losses of the last steps, to tell a leap."""
    stale: int = 0
    """Evaluations since the validation loss last fell."""
    ended: bool = False
    """Whether training stopped before its last step because the validation loss rose."""


@dataclass(frozen=True)
class Loaded:
    """A whole checkpoint, read."""

    directory: Path
    position: Position
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    random: dict[str, Any]
    average: dict[str, Tensor] | None = None
    """Moving average of the weights, where the run keeps one."""


def random_state() -> dict[str, Any]:
    """State of every generator that training may draw from."""
    name, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": _plain(random.getstate()),
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), place, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put every generator back to a state taken by `random_state`."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, place, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), place, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])


def seed_everything(seed: int) -> None:
    """Start every generator from one seed."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def save(
    directory: Path,
    position: Position,
    *,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    recipe_digest: str,
    random: Mapping[str, Any] | None = None,
    average: Mapping[str, Tensor] | None = None,
    before_rename: Callable[[], None] | None = None,
) -> Path:
    """Write the checkpoint of a step under directory and return its folder.

    random: state of the generators after that step; as it is now when None. average: the weights' moving
    average, in a file of its own. Nothing that was there before is touched. Raises DoesNotFit when the disk
    is full and CheckpointError when it cannot be written for another reason; no torn folder is left then.
    before_rename is called when all is written and not yet in place (for tests of sudden ends).
    """
    final = directory / step_name(position.step)
    part = final.with_name(final.name + PART)
    try:
        if is_whole(final, recipe_digest):
            return final
        for old in (part, final):
            if old.exists():
                shutil.rmtree(old)
        part.mkdir(parents=True)
        named = {WEIGHTS: weights} if average is None else {WEIGHTS: weights, AVERAGE: average}
        for name, tensors in named.items():
            save_file({key: one.detach().cpu().contiguous() for key, one in tensors.items()}, part / name)
        torch.save(dict(optimizer), part / OPTIMIZER)
        torch.save(random_state() if random is None else dict(random), part / RANDOM)
        (part / STATE).write_text(json.dumps(asdict(position), indent=1) + "\n", encoding="utf-8")
        files = {name: _describe(part / name) for name in (*named, OPTIMIZER, RANDOM, STATE)}
        manifest = {"version": VERSION, "step": position.step, "recipe": recipe_digest, "files": files}
        (part / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        to_disk(part / MANIFEST)
        to_disk(part)
        if before_rename is not None:
            before_rename()
        part.rename(final)
        to_disk(directory)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        needed = _size([weights, optimizer, average])
        raise _not_written(error, directory, position.step, needed) from error
    return final


def _not_written(error: Exception, directory: Path, step: int, needed: int) -> LuthierError:
    """Why a checkpoint was not written, and that the last one stands."""
    last = newest(directory)
    kept = "there is none before it" if last is None else f"the checkpoint of step {last} is untouched"
    # safetensors keeps the system's error in its text only, and torch.save not even there.
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    if full or (directory.is_dir() and shutil.disk_usage(directory).free < needed):
        return DoesNotFit(
            f"the disk is full: the checkpoint of step {step} ({needed / 1e6:,.1f} MB) was not "
            f"written; {kept}",
            file=directory,
            hint="free space there, then go on with luthier train --resume",
        )
    return CheckpointError(
        f"the checkpoint of step {step} cannot be written ({error}); {kept}", file=directory
    )


def _size(value: object) -> int:
    """Bytes of all tensors in a nest of mappings and sequences."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(_size(item) for item in value.values())
    return sum(_size(item) for item in value) if isinstance(value, (list, tuple)) else 0


def _describe(path: Path) -> dict[str, Any]:
    """Size and digest of a file that is on the disk when this returns."""
    to_disk(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def load(folder: Path, *, recipe_digest: str | None = None) -> Loaded:
    """Read one checkpoint. Raises CheckpointError when it is torn or of another recipe."""
    return _read(folder, _manifest(folder), recipe_digest)


def _manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a whole checkpoint. Raises CheckpointError when it is torn."""
    fault, manifest = check(folder)
    if fault is not None:
        raise CheckpointError(f"the checkpoint is torn: {fault}", file=folder)
    return manifest


def _read(folder: Path, manifest: Mapping[str, Any], recipe_digest: str | None) -> Loaded:
    """Read a checkpoint that is whole."""
    if manifest.get("version") != VERSION:
        raise CheckpointError(
            f"the checkpoint has format {manifest.get('version')}, this version reads {VERSION}", file=folder
        )
    # A checkpoint taken over from another run on purpose names no recipe: names and shapes are checked later.
    if recipe_digest is not None and manifest["recipe"] not in (None, recipe_digest):
        raise CheckpointError(
            "the checkpoint is of another recipe",
            file=folder,
            hint="resume with the recipe in that run's folder, or start a new run",
        )
    return Loaded(
        folder,
        position_of(folder),
        load_file(folder / WEIGHTS),
        torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True),
        torch.load(folder / RANDOM, map_location="cpu", weights_only=True),
        load_file(folder / AVERAGE) if AVERAGE in manifest["files"] else None,
    )


def position_of(folder: Path) -> Position:
    """Where the run stood at a whole checkpoint; its tensors are not read."""
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    known = {entry.name for entry in fields(Position)}
    return Position(**{key: value for key, value in state.items() if key in known})


def load_newest(
    directory: Path, *, recipe_digest: str, say: Callable[[str], None] | None = None
) -> Loaded | None:
    """The newest whole checkpoint, or None where there is none.

    Torn ones are passed over, each with a word to say. One of another recipe raises CheckpointError.
    """
    for step in reversed(steps(directory)):
        folder = directory / step_name(step)
        fault, manifest = check(folder)
        if fault is None:
            return _read(folder, manifest, recipe_digest)
        if say is not None:
            say(f"the checkpoint of step {step} is torn ({fault}): going back to the one before it")
    return None


def load_weights(folder: Path, *, average: bool = False) -> dict[str, Tensor]:
    """Trained weights of a whole checkpoint by name, or their moving average."""
    manifest = _manifest(folder)
    if average and AVERAGE not in manifest["files"]:
        raise CheckpointError("the checkpoint holds no average of the weights", file=folder)
    weights: dict[str, Tensor] = load_file(folder / (AVERAGE if average else WEIGHTS))
    return weights


def prune(directory: Path, *, keep_last: int, best_step: int | None) -> list[int]:
    """Delete all but the newest keep_last checkpoints and the best; returns the deleted steps.

    What cannot be deleted yet, as a file that another machine reads, is tried again the next time.
    """
    present = steps(directory)
    kept = {*present[-keep_last:], *([] if best_step is None else [best_step])}
    gone = [step for step in present if step not in kept]
    for step in gone:
        # Renamed first: what is half deleted must not look like a checkpoint.
        old = directory / step_name(step)
        dead = old.with_name(old.name + PART)
        shutil.rmtree(dead, ignore_errors=True)
        old.rename(dead)
    for dead in directory.glob("step-*" + PART):
        shutil.rmtree(dead, ignore_errors=True)
    return gone
