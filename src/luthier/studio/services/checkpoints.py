"""A run's checkpoints."""

from __future__ import annotations

import json
from dataclasses import dataclass

from luthier.runs.directory import RunDirectory
from luthier.runs.upkeep import bytes_of
from luthier.training.manifest import CHECKPOINTS, STATE, is_whole, step_name, steps


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One whole checkpoint."""

    step: int
    loss: float | None
    """On held-out rows at that step, if it was measured."""
    bytes: int
    best: bool
    written: float


def checkpoints(run: RunDirectory) -> list[Checkpoint]:
    """Whole checkpoints, newest first."""
    folder = run.path / CHECKPOINTS
    losses = {
        values["step"]: values.get("loss")
        for values, _ in run.lines("metrics")
        if values.get("kind") == "validation" and "step" in values
    }
    found = []
    best: int | None = (run.stage_values("train") or {}).get("best_step")
    for step in reversed(steps(folder)):
        place = folder / step_name(step)
        if not is_whole(place):
            continue
        if best is None:
            try:
                best = json.loads((place / STATE).read_text(encoding="utf-8")).get("best_step")
            except (OSError, ValueError):
                best = None
        written = place.stat().st_mtime
        found.append(Checkpoint(step, losses.get(step), bytes_of(place), step == best, written))
    return found
