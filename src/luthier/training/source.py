"""Where a training's batches come from, and how many steps they make."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from luthier.schema.recipe import TrainingChoice
from luthier.training.objective import MicroBatch


class BatchSource(Protocol):
    """Training batches in a fixed order: the same for the same epoch, whenever it is asked for."""

    def steps(self, epoch: int) -> int:
        """Optimiser steps of an epoch (counted from 0)."""

    def batches(self, epoch: int, step: int) -> Sequence[MicroBatch]:
        """Micro-batches of one optimiser step of an epoch."""

    def rows(self, epoch: int, step: int) -> Sequence[str]:
        """Where that step's rows stand, as ``file:line``."""


def total_steps(source: BatchSource, choice: TrainingChoice) -> int:
    """Optimiser steps of the whole run; a part of an epoch counts its first steps."""
    assert choice.epochs is not None or choice.max_steps is not None
    if choice.epochs is None:
        assert choice.max_steps is not None
        return choice.max_steps
    whole = math.floor(choice.epochs)
    total = sum(source.steps(epoch) for epoch in range(whole))
    if choice.epochs > whole:
        total += math.ceil(round((choice.epochs - whole) * source.steps(whole), 6))
    return total if choice.max_steps is None else min(total, choice.max_steps)
