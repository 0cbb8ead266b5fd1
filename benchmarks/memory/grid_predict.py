"""What is foretold of a row of the grid: by the formula, by the trace, and by other estimators."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from grid_more import ALL, Further
from grid_rows import METHODS, Row

from luthier.planning.estimate import estimate_training, kernels_for
from luthier.planning.exchange import Group, shared
from luthier.planning.hypothetical import parse_hardware
from luthier.schema.estimate import Estimate, TrainingShape
from luthier.schema.recipe import VisionChoice
from luthier.sizing.model_config import architecture_from_config
from luthier.sizing.training import TrainingMemory, training_memory
from luthier.sizing.vision import tower_of, with_tower

if TYPE_CHECKING:
    from luthier.schema.model import Architecture


@cache
def _tensors(model: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Names and shapes of a seeing model's weights, as its files would hold them."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

    given = ALL[model]
    config = CONFIG_MAPPING[given["model_type"]](**given)
    with torch.device("meta"):
        made: Any = AutoModelForImageTextToText.from_config(config)
    made.tie_weights()
    found = {id(weight): (name, tuple(weight.shape)) for name, weight in made.named_parameters()}
    return tuple(found.values())


def architecture(row: Row) -> Architecture:
    """The shape that a plan would read from the saved model."""
    given = ALL[row.model]
    if not isinstance(row, Further):
        return architecture_from_config(given)
    if row.image:
        tensors = {name: (shape, "BF16") for name, shape in _tensors(row.model)}
        total = 0
        for shape, _ in tensors.values():
            size = 1
            for side in shape:
                size *= side
            total += size
        arch = architecture_from_config(given, total_parameters=total)
        arch = arch.model_copy(update={"tower": tower_of(given, tensors)})
        return with_tower(arch, VisionChoice(tower=row.tower))
    arch = architecture_from_config(given)
    if row.reads:
        # As a plan does: another head stands in for the one over words.
        return arch.model_copy(update={"head": False, "tied_embeddings": False})
    return arch


def formula(row: Row) -> TrainingMemory:
    """Memory of the step in closed form, for a Hopper card in bf16."""
    shape = row.shape
    kernels = kernels_for("cuda", "bfloat16", compiled=shape.compiled, padded=shape.padded)
    return training_memory(
        architecture(row), METHODS[row.method], shape, dtype="bfloat16", kernels=kernels, hopper=True
    )


def estimate(row: Row, *, card: str = "h200", shape: TrainingShape | None = None) -> Estimate:
    """What `luthier plan` says of the step before it runs, its time for one step of all its devices."""
    shape = shape or row.shape
    devices = row.devices if isinstance(row, Further) else 1
    tokens = shape.tokens * row.accumulation * devices
    arch, method, hardware = architecture(row), METHODS[row.method], parse_hardware(f"{devices}x{card}")
    alone = estimate_training(
        arch, method, shape, hardware, tokens=tokens, device="cuda", dtype="bfloat16",
    )  # fmt: skip
    return shared(
        alone, Group(devices), arch=arch, method=method, shape=shape, hardware=hardware, tokens=tokens,
        device="cuda", dtype="bfloat16",
    )  # fmt: skip
