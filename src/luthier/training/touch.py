"""What processes hand one another besides gradients, and the words where they lose one another."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.distributed as dist

from luthier.errors import TrainingError
from luthier.training.manifest import CHECKPOINTS, is_whole, step_name, steps
from luthier.training.world import World, timeout

PIECE = 1 << 26
"""Bytes that are handed over at once."""
SIGNS = ("gloo/", "Connection closed by peer", "Connection reset by peer", "Socket Timeout", "NCCL",
         "Timed out waiting", "timed out after", "Broken pipe")  # fmt: skip
"""Words of a failed exchange between processes, in what torch's back ends raise."""


def lost_touch(error: RuntimeError, rank: int) -> TrainingError | None:
    """A failed exchange between processes in words, or None for any other error."""
    text = str(error)
    known = isinstance(error, dist.DistError) or any(sign in text for sign in SIGNS)
    if not known:
        return None
    seconds = timeout().total_seconds()
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return TrainingError(
        f"process {rank} lost touch with the others: {first}",
        hint="one of them has ended, or the network between the machines let nothing through for "
        f"{seconds:g} s (LUTHIER_TIMEOUT); NCCL_SOCKET_IFNAME (on a CPU GLOO_SOCKET_IFNAME) names the "
        "network to use; luthier train --resume goes on from the last checkpoint",
    )


def told_by_first(words: dict[str, str], world: World) -> dict[str, str]:
    """The first process's words, in all of them."""
    found = [words]
    dist.broadcast_object_list(found, src=0, device=world.device)
    return found[0]


def hand_out(directory: Path, world: World, *, guest: bool, writes: bool) -> None:
    """Copy what the run goes on from to machines that have no folder of the run: its newest whole checkpoint.

    guest: whether this process is on such a machine. writes: whether it is the one that writes there. Every
    process must call this; nothing is sent where all machines share the folder.
    """
    if not world.most(int(guest)):
        return
    files: list[tuple[str, int]] = []
    if world.first and (newest := _newest(directory / CHECKPOINTS)) is not None:
        files = sorted((str(f.relative_to(directory)), f.stat().st_size) for f in newest.iterdir())
    listed = told_by_first({"files": json.dumps(files)}, world)
    for name, size in json.loads(listed["files"]):
        _hand_over(directory / name, size, world, writes=writes)
    world.wait()


def _newest(folder: Path) -> Path | None:
    whole = (folder / step_name(step) for step in reversed(steps(folder)))
    return next((one for one in whole if is_whole(one)), None)


def _hand_over(path: Path, size: int, world: World, *, writes: bool) -> None:
    if writes:
        path.parent.mkdir(parents=True, exist_ok=True)
    with (path if world.first or writes else Path("/dev/null")).open("rb" if world.first else "wb") as file:
        for start in range(0, size, PIECE):
            length = min(PIECE, size - start)
            piece = torch.empty(length, dtype=torch.uint8)
            if world.first:
                piece = torch.frombuffer(bytearray(file.read(length)), dtype=torch.uint8)
            piece = piece.to(world.device)
            dist.broadcast(piece, src=0)
            if writes:
                file.write(piece.cpu().numpy().tobytes())
