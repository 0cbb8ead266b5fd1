"""The loss over rows that are not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from luthier.training.objective import MicroBatch, Objective, to_device
from luthier.training.sharding import Through, at_once
from luthier.training.world import ALONE, World


@torch.no_grad()
def validation_loss(
    model: Any,
    objective: Objective,
    batches: Sequence[MicroBatch],
    device: torch.device,
    *,
    world: World = ALONE,
    through: Through = at_once,
) -> float:
    """Mean loss over all trained tokens of the batches, in nats; dropout off."""
    was_training = model.training
    model.eval()
    total, weight = torch.zeros((), device=device), 0.0
    try:
        with objective.scope(model):
            for place, counts in world.turns(range(len(batches))):
                loss = through(objective, model, to_device(batches[place], device))
                total += loss.total * counts
                weight += loss.weight * counts
    finally:
        model.train(was_training)
    whole, weight = world.total(total.item(), weight)
    return whole / max(weight, 1.0)
