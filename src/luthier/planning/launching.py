"""Whether a micro-batch's kernels are launched one by one or recorded and launched at once (CUDA graphs)."""

from __future__ import annotations

from luthier.catalog.purposes import spec_of, tunes_preferences
from luthier.errors import Unsupported
from luthier.schema.estimate import TrainingShape
from luthier.schema.hardware import Hardware
from luthier.schema.model import Architecture
from luthier.schema.recipe import Lora, Recipe
from luthier.sizing.flops import training_flops

# Launching a compiled layer's kernels, forward and backward, beside an H100 (2026-11-22): 70 ms of the host's
# time for the 24 layers of Qwen2.5-0.5B, 195 ms with adapters; 190 ms for the 32 of Llama-3.1-8B with those.
# A step whose products take less waits for the host.
LAUNCHING, LAUNCHING_ADAPTERS = 2.5e-3, 6e-3
"""Seconds of the host for one layer of a micro-batch, without adapters and with."""
REACHED = 0.4
"""Share of the datasheet's rate that products reach."""
DIVIDED = "weights or rows that are divided over devices are not recorded"


def check_graphs(recipe: Recipe, device: str, *, compiled: bool) -> None:
    """Refuse recorded launches where they cannot be had. Errors: Unsupported."""
    why = _never(recipe, compiled=compiled) if device == "cuda" else "CUDA only"
    if recipe.training.cuda_graphs and why:
        raise Unsupported(f"training.cuda_graphs: {why}", hint="leave training.cuda_graphs out")


def records(
    recipe: Recipe, arch: Architecture, shape: TrainingShape, hardware: Hardware, *, compiled: bool
) -> tuple[bool, str]:
    """Whether recording pays on a CUDA device, and why."""
    if why := _never(recipe, compiled=compiled) or (DIVIDED if shape.shard > 1 else None):
        return False, why
    flops = hardware.accelerators[0].bf16_flops if hardware.accelerators else None
    if not flops:
        return False, "how fast this GPU is has no source"
    each = training_flops(
        arch,
        recipe.method,
        length=shape.mean_length or shape.sequence_length,
        trained_share=shape.trained_share,
        checkpointing=shape.activation_checkpointing == "full",
    )
    computing = each.total * shape.micro_batch_size * (shape.mean_length or shape.sequence_length)
    computing /= flops * REACHED
    launching = (LAUNCHING_ADAPTERS if isinstance(recipe.method, Lora) else LAUNCHING) * arch.layers
    said = f"about {computing * 1e3:.0f} ms of products a micro-batch, {launching * 1e3:.0f} to launch them"
    return computing < launching, said


def _never(recipe: Recipe, *, compiled: bool) -> str | None:
    """What stands against recording, whatever the sizes; None where nothing does."""
    training, method = recipe.training, recipe.method
    if not compiled:
        return "only compiled layers are recorded"
    if spec_of(recipe.task).answers != "chat" or tunes_preferences(recipe):
        return "only next-token losses are recorded"
    sizes = training.parallel.sizes(training.devices) if training.parallel is not None else {}
    if any(size > 1 for name, size in sizes.items() if name != "replicate"):
        return DIVIDED
    if training.update_in_backward:
        return "updates in the backward pass are not recorded"
    if training.neftune_alpha or (isinstance(method, Lora) and method.dropout):
        return "noise is drawn anew for each micro-batch"
    if training.activation_checkpointing == "offload":
        return "inputs that wait in the host's memory are not recorded"
    if training.offload_parameters:
        return "copies of weights that wait in the host's memory are not recorded"
    return None
