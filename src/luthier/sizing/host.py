"""Resident memory of a training process on a CPU."""

from __future__ import annotations

from luthier.schema.estimate import Part, Phase, TrainingShape
from luthier.schema.model import Architecture
from luthier.schema.recipe import Full, Method
from luthier.sizing.calibration import HEAP_WASTE, RUNTIME
from luthier.sizing.layers import heads_of, layer_kinds
from luthier.sizing.states import checkpoint_bytes
from luthier.sizing.training import MIB, TrainingMemory

KERNELS_FOR_A_LENGTH = 8 * MIB
"""What stays behind for each new set of row lengths in bf16: SmolLM2-135M on a processor with AMX, 40 and
80 steps of rows of different lengths (torch 2.13). In fp32 nothing of the kind was seen."""
MOST_LENGTHS = 100
"""oneDNN's cache is bounded; further lengths replace older ones."""


def on_host(
    memory: TrainingMemory,
    arch: Architecture,
    method: Method,
    shape: TrainingShape,
    *,
    element: int = 4,
    micro_batches: int = 1,
    runtime: int = RUNTIME,
) -> tuple[Phase, ...]:
    """Phases of a CPU run: the tensors, the heap's holes as workspace, and interpreter with libraries.

    micro_batches: how many the run has, for the kernels that are kept for each number of tokens.
    """
    waste = heap_waste(arch, method, shape, element)
    if element == 2 and shape.mean_length is not None and shape.mean_length < shape.sequence_length:
        waste += KERNELS_FOR_A_LENGTH * min(micro_batches, MOST_LENGTHS)
    copied = 0
    if shape.background_checkpoints:
        copied = checkpoint_bytes(arch, method, shape.optimizer, element=element, average=shape.ema)
    found = []
    for phase in memory.phases:
        parts: dict[Part, int] = dict(phase.parts)
        if phase.name != "load":
            parts["workspace"] = waste
            parts["buffers"] = parts.get("buffers", 0) + copied
        parts["runtime"] = runtime
        found.append(Phase(name=phase.name, parts=parts))
    return tuple(found)


def heap_waste(arch: Architecture, method: Method, shape: TrainingShape, element: int = 4) -> int:
    """Bytes of heap that hold nothing at the height of a step.

    torch asks for aligned blocks, and glibc before 2.38 cannot put one into a hole of just its size, so
    that every layer leaves holes behind. Newer C libraries and other systems need less: this errs on
    the safe side there.
    """
    return round(HEAP_WASTE[case_of(method, shape)] * passing_bytes(arch, shape, element))


def case_of(method: Method, shape: TrainingShape) -> str:
    """Which share of the passing tensors is wasted.

    By method, for adapters by checkpointing, and by whether rows are padded: whole tensors pass there that
    are otherwise made document by document.
    """
    if not isinstance(method, Full) and shape.activation_checkpointing in ("full", "offload"):
        return "lora-checkpointing"
    return ("padded-" if shape.padded else "") + ("full" if isinstance(method, Full) else "lora")


def passing_bytes(arch: Architecture, shape: TrainingShape, element: int) -> int:
    """Bytes of the tensors that pass through the layers and are not kept, summed over the layers."""
    passing = 0
    for kind in layer_kinds(arch):
        passing += 7 * arch.hidden_size
        if kind in ("full", "sliding"):
            heads, kv_heads, width = heads_of(arch, kind)
            passing += 4 * (heads + kv_heads) * width
        elif kind == "linear":
            passing += 8 * arch.hidden_size
    return passing * shape.tokens * element
