"""What a vision tower adds to a training: its shape from a saved model, its memory and its operations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.schema.estimate import TrainingShape
from luthier.schema.model import Architecture, Tower
from luthier.schema.recipe import VisionChoice

_TOWERS = ("visual.", "vision_tower.", "vision_model.")
_PROJECTORS = ("visual.merger.", "visual.deepstack_merger_list.", "multi_modal_projector.", "connector.")

Tensors = Mapping[str, tuple[tuple[int, ...], str]]


def tower_of(config: Mapping[str, Any], tensors: Tensors) -> Tower | None:
    """The tower that a config.json describes, counted by the saved tensors; None where it has none."""
    vision = config.get("vision_config")
    if not isinstance(vision, Mapping):
        return None
    layers = vision.get("depth") or vision.get("num_hidden_layers")
    width = vision.get("hidden_size") or vision.get("embed_dim")
    if not isinstance(layers, int) or not isinstance(width, int):
        return None
    side, frames = int(vision.get("patch_size") or 14), int(vision.get("temporal_patch_size") or 1)
    tower = sides = projector = 0
    for name, (shape, _) in tensors.items():
        size = 1
        for one in shape:
            size *= one
        if any(part in name for part in _PROJECTORS):
            projector += size
        elif any(part in name for part in _TOWERS):
            tower += size
            if len(shape) == 2 and name.endswith(".weight") and "embed" not in name:
                sides += sum(shape)
    return Tower(
        layers=layers,
        hidden_size=width,
        intermediate_size=int(vision.get("intermediate_size") or 4 * width),
        patch=side * side * int(vision.get("in_channels") or vision.get("num_channels") or 3) * frames,
        parameters=tower,
        sides=sides,
        projector=projector,
    )


def with_tower(arch: Architecture, choice: VisionChoice) -> Architecture:
    """The architecture with what a recipe trains of its tower."""
    if arch.tower is None:
        return arch
    trained = {"adapted": choice.tower == "adapters", "joined": choice.projector}
    return arch.model_copy(update={"tower": arch.tower.model_copy(update=trained)})


def tower_memory(arch: Architecture, shape: TrainingShape, element: int) -> tuple[float, float]:
    """(kept for the backward pass, height of the tower's own forward pass), in bytes of one micro-batch.

    Pixels are kept in fp32. A frozen tower keeps nothing: one layer is there at a time, its projections or
    its MLP beside the stream. An adapted one keeps each layer's norms, projections and MLP.
    """
    tower = arch.tower
    patches = shape.patches * shape.micro_batch_size
    if tower is None or not patches:
        return 0.0, 0.0
    h, wide = tower.hidden_size, tower.intermediate_size
    pixels = patches * tower.patch * 4.0
    height = patches * max(6 * h, 3 * h + 2 * wide) * element
    kept = patches * tower.layers * (9 * h + 3 * wide) * element if tower.adapted else 0.0
    return pixels + kept, pixels + height


def tower_flops(arch: Architecture, shape: TrainingShape) -> float:
    """Operations of the tower for one token of the rows: forward alone where it is frozen."""
    tower = arch.tower
    if tower is None or not shape.patches_per_token:
        return 0.0
    passes = 2.0 if not tower.adapted else 6.0
    return passes * (tower.parameters + tower.projector) * shape.patches_per_token
