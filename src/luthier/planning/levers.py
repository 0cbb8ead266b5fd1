"""What options of a training ask of each other, decided before anything loads."""

from __future__ import annotations

from luthier.catalog.purposes import spec_of
from luthier.errors import RecipeError, Unsupported
from luthier.schema.estimate import TrainingShape
from luthier.schema.hardware import Accelerator, Hardware
from luthier.schema.model import Architecture
from luthier.schema.recipe import Full, Lora, Recipe
from luthier.sizing.step_time import step_time

EIGHT_BITS = (8, 9)
"""Compute capability from which on matrix units take eight-bit floating point (Ada and Hopper)."""


def check_levers(recipe: Recipe) -> None:
    """Refuse options that do not go together, with the reason. Errors: RecipeError, Unsupported."""
    training, full = recipe.training, isinstance(recipe.method, Full)
    if training.optimizer == "muon" and not full:
        raise Unsupported(
            "Muon makes the update of a whole matrix orthogonal: that says nothing of an adapter's factors",
            hint="training.optimizer: adamw, or method.name: full",
        )
    if training.select == "ema" and training.ema is None:
        raise RecipeError(
            "training.select: ema ships an average of the weights, and training.ema keeps none",
            hint="set training.ema: 0.999, or training.select: best",
        )
    if training.neftune_alpha and spec_of(recipe.task).answers != "chat":
        raise Unsupported(
            f"noise on embeddings (training.neftune_alpha) is for models that write, not for {recipe.task}",
            hint="leave training.neftune_alpha out",
        )
    if training.update_in_backward:
        _check_updates(recipe)
    if recipe.model.new_tokens:
        _check_new_tokens(recipe)
    if recipe.training.offload_parameters and (why := why_not_offloaded(recipe)) is not None:
        raise Unsupported(f"training.offload_parameters: {why[0]}", hint=why[1])
    if eight_bit_products(recipe):
        _check_products(recipe)
    if training.devices > 1:
        _check_shared(recipe)


def check_units(recipe: Recipe, hardware: Hardware, device: str) -> None:
    """Refuse types, optimisers and kinds of memory that the device does not have. Errors: Unsupported."""
    if recipe.training.offload_parameters and device != "cuda":
        raise Unsupported(
            "training.offload_parameters leaves weights in the host's memory, where a CPU has all of them",
            hint="leave training.offload_parameters out",
        )
    if recipe.training.optimizer.endswith("8bit") and device != "cuda":
        raise Unsupported(
            f"training.optimizer: {recipe.training.optimizer} works on CUDA only",
            hint="use adamw, or adamw-bf16 to save memory on a CPU",
        )
    eight = "method.products" if eight_bit_products(recipe) else ""
    if isinstance(recipe.method, Lora) and recipe.method.base == "float8":
        eight = "method.base"
    if not eight:
        return
    gpu = hardware.accelerators[0] if device == "cuda" else None
    if gpu is None or (gpu.compute_capability is not None and gpu.compute_capability < EIGHT_BITS):
        raise Unsupported(
            f"{eight}: float8 needs matrix units for eight-bit numbers, which "
            f"{'a CPU' if gpu is None else gpu.name} has not (Ada, Hopper and newer have)",
            hint=f"leave {eight} out, or use method.name: qlora to save memory",
        )


def eight_bit_products(recipe: Recipe) -> bool:
    """Whether all weights are trained with products in eight bits."""
    return isinstance(recipe.method, Full) and recipe.method.products == "float8"


def check_products(recipe: Recipe, arch: Architecture) -> None:
    """Refuse eight-bit products of a model whose experts are one tensor. Errors: Unsupported."""
    if eight_bit_products(recipe) and arch.experts is not None:
        raise Unsupported(
            "method.products: float8 is for linear layers, and the experts of a mixture are one tensor",
            hint="leave method.products out",
        )


def products_told(arch: Architecture, shape: TrainingShape, gpu: Accelerator) -> str:
    """What products in eight bits came to where they were measured, and where they are foretold to lose."""
    told = (
        "method.products: float8 pays on large models alone (on an H200 an 8B took 1.41 times the tokens/s "
        "of one without, a 3B 1.04, a 0.5B 0.66)"
    )
    narrow, wide = (step_time(arch, Full(products=kind), shape, gpu) for kind in ("float8", None))
    if narrow is not None and wide is not None and narrow.total > wide.total:
        each = f"{narrow.total * 1e3:.0f} ms instead of {wide.total * 1e3:.0f}"
        return f"{told}; here a step is foretold to take longer with it, {each}: leave it out"
    return f"{told}; its quality is measured on one small model: hold a short run against one without"


def why_not_offloaded(recipe: Recipe) -> tuple[str, str] | None:
    """Why the layers' frozen weights cannot wait in the host's memory, with a way out; None if they can."""
    training, out = recipe.training, "leave training.offload_parameters out"
    if not isinstance(recipe.method, Lora):
        return (
            "weights that are trained change at every step, with gradients and states as large as they are",
            f"method.name: lora or qlora, or {out}",
        )
    if recipe.task not in ("chat", "text-generation") or recipe.preference is not None:
        return f"it is done for chat and text generation without preference pairs, not for {recipe.task}", out
    if recipe.vision is not None:
        return "it is not done for a model that sees", out
    if training.devices > 1:
        return (
            "each device would keep all weights in the host's memory",
            "training.parallel.shard divides them over the devices instead",
        )
    kept = training.activation_checkpointing
    if kept not in (None, "full", "offload") or training.recomputed_layers is not None:
        return (
            "what a layer keeps for its backward pass would hold its weights on the GPU",
            "set training.activation_checkpointing: full (or offload), for all layers",
        )
    if training.cuda_graphs:
        return "copies of weights cannot be recorded", "leave training.cuda_graphs out"
    return None


def _check_updates(recipe: Recipe) -> None:
    """Updates in the backward pass: no gradient may be wanted twice."""
    training, name = recipe.training, "training.update_in_backward"
    if not isinstance(recipe.method, Full):
        raise Unsupported(
            f"{name} saves the gradients of all weights; those of adapters are too few to be worth it",
            hint=f"leave {name} out, or method.name: full",
        )
    if training.max_grad_norm:
        raise RecipeError(
            f"{name} drops gradients before their norm is known, and training.max_grad_norm is "
            f"{training.max_grad_norm:g}",
            hint=f"set training.max_grad_norm: 0 (no clipping), or leave {name} out",
        )
    if training.micro_batch_size is not None and training.batch_size not in (None, training.micro_batch_size):
        raise RecipeError(
            f"{name} updates after every micro-batch, and a step has "
            f"{training.batch_size} rows in micro-batches of {training.micro_batch_size}",
            hint="give training.batch_size and training.micro_batch_size the same value",
        )
    if training.on_spike == "skip":
        raise RecipeError(
            f"training.on_spike: skip leaves a step out whose weights {name} has changed by then",
            hint="training.on_spike: note",
        )
    if training.optimizer.endswith("8bit"):
        raise Unsupported(
            f"{name} with states in eight bits is not tested", hint="training.optimizer: adamw-bf16"
        )


def _check_products(recipe: Recipe) -> None:
    """Products in eight bits: what they are between, and who holds the weights."""
    training, out = recipe.training, "leave method.products out"
    if recipe.model.dtype == "float32":
        raise Unsupported(
            "method.products: float8 goes with layers in 16 bits, and model.dtype is float32",
            hint=f"model.dtype: bfloat16, or {out}",
        )
    if recipe.preference is not None:
        raise Unsupported(
            "method.products: float8 beside preference pairs is not done: the untouched model that they are "
            "weighed against computes in 16 bits",
            hint=out,
        )
    if training.compile is False:
        raise Unsupported(
            "method.products: float8 without compiled layers takes longer than 16 bits: each cast is some "
            "passes over the memory of its own",
            hint=f"leave training.compile out, or {out}",
        )
    sizes = training.parallel.sizes(training.devices) if training.parallel is not None else {}
    if split := [name for name, size in sizes.items() if name != "replicate" and size > 1]:
        raise Unsupported(
            f"training.parallel.{split[0]}: products in eight bits are done with whole weights and rows",
            hint=f"use training.parallel.replicate, or {out}",
        )


def _check_new_tokens(recipe: Recipe) -> None:
    """Rows of embeddings: who reads them, and who holds them."""
    training, name = recipe.training, "model.new_tokens"
    out = f"leave {name} out"
    if recipe.task not in ("chat", "text-generation"):
        raise Unsupported(f"{name} is for models that write, not for {recipe.task}", hint=out)
    if recipe.vision is not None:
        raise Unsupported(
            f"{name} in a model that sees is not done: its tables belong to its parts", hint=out
        )
    if recipe.preference is not None:
        raise Unsupported(
            f"{name} beside preference pairs is not done: what they are weighed against has no such tokens",
            hint="teach it the tokens by a chat tuning first, then tune that model on the pairs",
        )
    if recipe.model.from_scratch is not None:
        raise Unsupported(
            f"{name} is for a model that has a vocabulary already",
            hint=f"{out}, and name a tokenizer that has them (model.from_scratch.tokenizer)",
        )
    if training.frozen_layers:
        raise RecipeError(
            f"training.frozen_layers freezes the embeddings, and {name} needs theirs trained",
            hint=f"set training.frozen_layers: 0, or {out}",
        )
    sizes = training.parallel.sizes(training.devices) if training.parallel is not None else {}
    if split := [one for one, size in sizes.items() if one != "replicate" and size > 1]:
        raise Unsupported(
            f"training.parallel.{split[0]}: rows of new tokens are not divided over devices",
            hint=f"use training.parallel.replicate, or {out}",
        )


def _check_shared(recipe: Recipe) -> None:
    """Several devices."""
    training = recipe.training
    alone = "leave training.devices at 1"
    if training.update_in_backward:
        raise Unsupported(
            "training.update_in_backward changes weights before the gradients of all devices are added up",
            hint=f"{alone}, or leave it out",
        )
    sizes = training.parallel.sizes(training.devices) if training.parallel is not None else {}
    split = [name for name in ("tensor", "context", "pipeline", "expert") if sizes.get(name, 1) > 1]
    if split and (training.ema is not None or training.neftune_alpha or training.optimizer == "muon"):
        what = (
            "training.ema"
            if training.ema
            else ("training.neftune_alpha" if training.neftune_alpha else "training.optimizer: muon")
        )
        raise Unsupported(
            f"{what} needs whole weights and sequences, and training.parallel.{split[0]} divides them",
            hint="leave it out, or share by replicate and shard alone",
        )
