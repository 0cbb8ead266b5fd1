"""Give each process its part of a model: a run of the tokens, slices of matrices, experts or layers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from luthier.errors import Unsupported
from luthier.models.expert_parallel import divide_experts
from luthier.models.stage import keep_stage
from luthier.models.tensor_parallel import divide_matrices
from luthier.tasks.causal import CausalObjective, placed
from luthier.tasks.context import context_objective
from luthier.tasks.pipeline import pipeline_objective
from luthier.training.division import ALONG, WHOLE, Division
from luthier.training.objective import Objective
from luthier.training.world import World

if TYPE_CHECKING:
    import torch


def take_part(
    model: Any, objective: Objective, world: World, device: torch.device, *, compiled: bool = False
) -> tuple[Objective, Division]:
    """Keep this process's part of the model and move it to the device; objective and weights as they are.

    Weights that are trained must ask for a gradient already. Raises Unsupported, before anything is changed,
    for a model or an objective that is not divided in the way that the grid asks for.
    """
    side = next((name for name in ALONG if world.sizes[name] > 1), None)
    if side is None:
        return objective, WHOLE
    if type(objective) is not CausalObjective or not objective.documents or objective.head is None:
        raise Unsupported(
            f"training.parallel.{side}: {type(model).__name__} is not trained on documents laid end to end",
            hint="use training.parallel.shard, or replicate",
        )
    division = Division(world, side, sizes=_sizes(model))
    group = division.group
    if side == "context":
        names = frozenset(name for name, one in model.named_parameters() if one.requires_grad)
        return context_objective(objective, group), replace(division, summed=names)
    if side == "pipeline":
        stage, twins = keep_stage(model, division.place, division.count)
        division = replace(division, twins=twins)
    elif side == "tensor":
        divided = divide_matrices(model, group)
        division = replace(division, cuts=divided.cuts, summed=frozenset(divided.summed))
    else:
        division = replace(division, cuts=divide_experts(model, group))
    model.to(device)
    objective = placed(objective, model, compiled=compiled)
    return (pipeline_objective(objective, stage, group) if side == "pipeline" else objective), division


def _sizes(model: Any) -> tuple[int, int]:
    """Numbers in the weights that are trained, and in all."""
    weights = list(model.parameters())
    return sum(one.numel() for one in weights if one.requires_grad), sum(one.numel() for one in weights)
