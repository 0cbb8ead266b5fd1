"""Which trainings are divided by tensor, context, pipeline and expert, decided before anything loads."""

from __future__ import annotations

from collections.abc import Iterator

from luthier.errors import Unsupported
from luthier.schema.model import Architecture
from luthier.schema.recipe import Full, Lora, QLora, Recipe

ALONG = ("tensor", "context", "pipeline", "expert")
"""Sizes along which devices work on the same rows."""
_DENSE = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3", "granite"})
_MIXTURES = frozenset({"mixtral", "qwen3_moe"})
FAMILIES = {
    "tensor": _DENSE,
    "context": _DENSE | _MIXTURES | {"phi3", "olmo2"},
    "pipeline": _DENSE | _MIXTURES | {"phi3", "olmo2"},
    "expert": _MIXTURES,
}
"""Model types that the tests hold to one process, gradient by gradient."""
TASKS = ("chat", "text-generation")
ELEMENTWISE = ("adamw", "adamw-bf16", "adamw-bf16-kahan")
"""Optimisers that update each number by itself, so that slices of a weight need nothing of each other."""


def check_division(recipe: Recipe, arch: Architecture) -> None:
    """Refuse what cannot be divided in the way that training.parallel asks for. Errors: Unsupported."""
    side = divided_along(recipe)
    if side is None:
        return
    for why, hint in _faults(recipe, arch, side):
        raise Unsupported(f"training.parallel.{side}: {why}", hint=hint)


def divided_along(recipe: Recipe) -> str | None:
    """The one of `ALONG` that is longer than one; None where none is. Errors: Unsupported for several."""
    sizes = recipe.training.parallel
    if sizes is None:
        return None
    longer = [name for name in ALONG if getattr(sizes, name) > 1]
    if longer and (sizes.shard or 1) > 1:
        longer.append("shard")
    if len(longer) > 1:
        raise Unsupported(
            f"training.parallel: {' and '.join(longer)} are not done together, each with replicate alone",
            hint=f"keep one of {', '.join(longer)}, and give the other devices to replicate",
        )
    return longer[0] if longer else None


def _faults(recipe: Recipe, arch: Architecture, side: str) -> Iterator[tuple[str, str]]:
    """What stands against it, with a way out."""
    yield from _of_work(recipe, side)
    yield from _of_model(recipe, arch, side)
    if side != "context":
        yield from _of_method(recipe, side)


def _of_work(recipe: Recipe, side: str) -> Iterator[tuple[str, str]]:
    training, other = recipe.training, "use training.parallel.replicate or shard"
    if recipe.task not in TASKS or recipe.preference is not None or recipe.vision is not None:
        yield "only chat and text generation are trained so, without preference pairs and images", other
    if training.compile or training.activation_checkpointing == "selective":
        yield (
            "layers that exchange are not compiled, and selective recomputation needs compiled ones",
            "leave training.compile out, and use activation_checkpointing: full to save memory",
        )
    if training.update_in_backward:
        yield "gradients are whole only after the backward pass", "training.update_in_backward=false"
    if training.neftune_alpha and side in ("context", "pipeline"):
        yield "the noise on embeddings is that of whole rows", "training.neftune_alpha=0"


def _of_model(recipe: Recipe, arch: Architecture, side: str) -> Iterator[tuple[str, str]]:
    size = getattr(recipe.training.parallel, side)
    if arch.model_type not in FAMILIES[side] or recipe.model.trust_remote_code:
        known = ", ".join(sorted(FAMILIES[side]))
        yield f"{arch.model_type} is not held to one device by a test yet ({known} are)", "use shard"
    parts = {
        "tensor": {
            "attention heads": arch.attention_heads,
            "key and value heads": arch.kv_heads,
            "width of the MLP": arch.intermediate_size,
        },
        "expert": {"number of experts": arch.experts.total if arch.experts else 0},
    }
    for what, count in parts.get(side, {}).items():
        if count % size:
            yield f"{what} ({count}) does not divide by {size}", f"use a divisor of {count}, or shard"
    if side == "pipeline" and size > arch.layers:
        yield f"{size} stages want as many layers, and there are {arch.layers}", f"use at most {arch.layers}"


def _of_method(recipe: Recipe, side: str) -> Iterator[tuple[str, str]]:
    training, method = recipe.training, recipe.method
    if training.optimizer not in ELEMENTWISE:
        yield (
            f"{training.optimizer} looks at whole weights, of which each device has a part",
            f"training.optimizer: {', '.join(ELEMENTWISE)}",
        )
    if training.ema is not None:
        yield "the average of the weights is kept where they are whole", "leave training.ema out"
    if side == "pipeline" and isinstance(method, Full) and training.frozen_layers:
        yield "a stage whose layers are frozen has nothing to train", "training.frozen_layers=0"
    if not isinstance(method, Lora):
        return
    if method.base is not None:
        yield (
            "a model in float8 is not read into the host's memory, where its parts would be taken from",
            "leave method.base out, or use context",
        )
    if side == "tensor" and isinstance(method, QLora):
        yield "weights in four bits are not cut", "method.name: lora, or pipeline or shard"
    if side == "tensor" and method.dora:
        yield "the norms of DoRA go over whole rows of a weight", "method.dora=false"
    if side == "expert" and method.experts != "none":
        yield "adapters on experts are not divided with them", "method.experts: none, or shard"
