"""Whether a micro-batch's kernels are launched one by one or recorded and launched at once (CUDA graphs)."""

from __future__ import annotations

from luthier.catalog.purposes import spec_of, tunes_preferences
from luthier.errors import Unsupported
from luthier.schema.estimate import TrainingShape
from luthier.schema.hardware import Hardware
from luthier.schema.model import Architecture
from luthier.schema.recipe import Lora, Recipe
from luthier.sizing.flops import training_flops
from luthier.sizing.step_time import PRODUCTS, launching, replaying


def check_graphs(recipe: Recipe, device: str, shape: TrainingShape, *, compiled: bool) -> None:
    """Refuse recorded launches where they cannot be had. Errors: Unsupported."""
    why = _never(recipe, shape, compiled=compiled) if device == "cuda" else "CUDA only"
    if recipe.training.cuda_graphs and why:
        raise Unsupported(f"training.cuda_graphs: {why}", hint="leave training.cuda_graphs out")


def records(
    recipe: Recipe, arch: Architecture, shape: TrainingShape, hardware: Hardware, *, compiled: bool
) -> tuple[bool, str]:
    """Whether recording pays on a CUDA device, and why: a step whose products take less than launching its
    kernels waits for the host, and a recorded one waits only until its first kernel runs.
    """
    if why := _never(recipe, shape, compiled=compiled):
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
    computing /= flops * PRODUCTS
    one_by_one = launching(arch, recipe.method, compiled=True)
    at_once = replaying(arch, recipe.method)
    said = f"about {computing * 1e3:.0f} ms of products a micro-batch, {one_by_one * 1e3:.0f} to launch them"
    said += f", {at_once * 1e3:.0f} recorded"
    return computing + at_once < one_by_one, said


def _never(recipe: Recipe, shape: TrainingShape, *, compiled: bool) -> str | None:
    """What stands against recording, given or derived, whatever the sizes; None where nothing does."""
    training, method = recipe.training, recipe.method
    if not compiled:
        return "only compiled layers are recorded"
    if spec_of(recipe.task).answers != "chat" or tunes_preferences(recipe):
        return "only next-token losses are recorded"
    sizes = training.parallel.sizes(training.devices) if training.parallel is not None else {}
    if shape.shard > 1 or any(size > 1 for name, size in sizes.items() if name != "replicate"):
        return "weights or rows that are divided over devices are not recorded"
    if training.update_in_backward:
        return "updates in the backward pass are not recorded"
    if training.neftune_alpha or (isinstance(method, Lora) and method.dropout):
        return "noise is drawn anew for each micro-batch"
    if shape.activation_checkpointing == "offload":
        return "inputs that wait in the host's memory are not recorded"
    if shape.offload_parameters:
        return "copies of weights that wait in the host's memory are not recorded"
    return None
