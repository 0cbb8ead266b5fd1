"""What a checkpoint's folder is called and holds, and whether it is whole. No torch is loaded here.

A checkpoint is a folder ``step-00000012`` whose manifest names every file with its size and digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from luthier.errors import CheckpointError
from luthier.files import write_text

CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
AVERAGE = "average.safetensors"
OPTIMIZER = "optimizer.pt"
RANDOM = "random.pt"
STATE = "state.json"
VERSION = 1
PART = ".part"


def step_name(step: int) -> str:
    """Folder name of a step's checkpoint; names sort as steps do."""
    return f"step-{step:08d}"


def steps(directory: Path) -> list[int]:
    """Steps that have a finished folder, oldest first; whether it is whole is not looked at."""
    if not directory.is_dir():
        return []
    names = (path.name for path in directory.iterdir() if path.is_dir())
    found = (name.removeprefix("step-") for name in names if name.startswith("step-"))
    return sorted(int(number) for number in found if number.isdecimal())


def newest(directory: Path) -> int | None:
    """The last step that has a checkpoint, whole or not; None without any."""
    return max(steps(directory), default=None)


def is_whole(folder: Path, recipe_digest: str | None = None) -> bool:
    """Whether every file of the checkpoint is there as it was written (and is of that recipe)."""
    fault, manifest = check(folder)
    return fault is None and recipe_digest in (None, manifest.get("recipe"))


def check(folder: Path) -> tuple[str | None, dict[str, Any]]:
    """The first fault of a checkpoint in words, or None; and its manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        for name, wanted in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing", manifest
            if path.stat().st_size != wanted["bytes"]:
                return f"{name} is {path.stat().st_size} bytes, {wanted['bytes']} were written", manifest
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != wanted["sha256"]:
                    return f"{name} is not what was written", manifest
    except FileNotFoundError:
        return f"{MANIFEST} is missing", {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})", {}
    if not {WEIGHTS, OPTIMIZER, RANDOM, STATE} <= files.keys():
        return f"{MANIFEST} names too few files", manifest
    return None, manifest


def to_disk(path: Path) -> None:
    """Return when a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def adopt(folder: Path, checkpoints: Path, **changes: object) -> Path:
    """Take a whole checkpoint over into another run, under no recipe's name; returns its folder there.

    Files are linked where the disk can, else copied. changes: entries of its state that are to differ.
    Raises CheckpointError when it is torn.
    """
    fault, manifest = check(folder)
    if fault is not None:
        raise CheckpointError(f"the checkpoint is torn: {fault}", file=folder)
    final = checkpoints / folder.name
    part = final.with_name(final.name + PART)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name in manifest["files"]:
        if name == STATE:
            continue
        try:
            os.link(folder / name, part / name)
        except OSError:  # another disk, or a file system without links
            shutil.copyfile(folder / name, part / name)
    state = {**json.loads((folder / STATE).read_text(encoding="utf-8")), **changes}
    write_text(part / STATE, json.dumps(state, indent=1) + "\n")
    content = (part / STATE).read_bytes()
    files = {
        **manifest["files"],
        STATE: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()},
    }
    adopted = {**manifest, "recipe": None, "adopted_from": str(folder), "files": files}
    write_text(part / MANIFEST, json.dumps(adopted, indent=1) + "\n")
    to_disk(part)
    part.rename(final)
    return final
