"""Which of a run's steps is shipped."""

from __future__ import annotations

from pathlib import Path

from luthier.errors import CheckpointError
from luthier.schema.recipe import TrainingChoice
from luthier.training import checkpoint
from luthier.training.checkpoint import Position
from luthier.training.manifest import CHECKPOINTS, is_whole, step_name, steps


def selected_step(position: Position, choice: TrainingChoice) -> int:
    """The step whose weights are shipped."""
    if choice.select == "best" and position.best_step is not None:
        return position.best_step
    return position.step


def selected_checkpoint(directory: Path, choice: TrainingChoice) -> Path:
    """The selected checkpoint of a run's folder; the newest one where that is torn.

    Raises CheckpointError where there is none.
    """
    folder = directory / CHECKPOINTS
    for step in reversed(steps(folder)):
        newest = folder / step_name(step)
        if is_whole(newest):
            selected = folder / step_name(selected_step(checkpoint.position_of(newest), choice))
            return selected if selected == newest or is_whole(selected) else newest
    raise CheckpointError(
        "there is no whole checkpoint", file=folder, hint="train first: luthier train --resume"
    )
