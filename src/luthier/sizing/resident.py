"""What a training holds throughout: weights, adapters, gradients and the optimiser's states."""

from __future__ import annotations

import math
from dataclasses import dataclass

from luthier.schema.estimate import TrainingShape
from luthier.schema.model import Architecture
from luthier.schema.recipe import Full, Lora, Method, OptimizerName, QLora, without_masters
from luthier.sizing.activations import Kernels
from luthier.sizing.parameters import (
    ParameterCount,
    expert_parameters,
    lora_parameters,
    new_rows,
    packed_matrices,
    target_matrices,
)
from luthier.sizing.states import moments, trained_tensors

BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number by its type."""
NF4_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Resident:
    """What stays through the run. Bytes."""

    weights: int
    adapters: int
    gradients: int
    """All gradients, when they are all there."""
    optimizer: int
    """Moments, and fp32 masters."""
    trainable: int


def resident(  # noqa: PLR0917 (what is trained, how, and by what)
    arch: Architecture,
    count: ParameterCount,
    method: Method,
    dtype: str,
    kernels: Kernels,
    optimizer: OptimizerName = "adamw",
    *,
    narrow: bool = False,
) -> Resident:
    """Weights, adapters, gradients, and the optimiser's states.

    narrow: whether gradients beside fp32 masters stay in the weights' type.
    """
    element = BYTES[dtype]
    if isinstance(method, Full):
        trained = count.backbone
        masters = kernels.masters and element == 2 and not without_masters(optimizer)
        size = 4 if masters else element
        states = trained * 4 * masters + moments(arch, method, optimizer, wide=size)
        at_once = trained
        if kernels.updates_in_backward:
            at_once = max(numbers for _, numbers in trained_tensors(arch, method))
        return Resident(count.total * element, 0, at_once * (element if narrow else size), states, trained)
    assert isinstance(method, Lora)
    adapters = lora_parameters(arch, method.rank, method.targets)
    if method.dora:
        adapters += sum(times * m.outputs for times, m in target_matrices(arch, method.targets))
    adapters += expert_parameters(arch, method)  # routers too: their fp32 masters are as large
    adapters += math.prod(new_rows(arch))
    size = BYTES[method.adapter_dtype] if kernels.masters else kernels.adapter_bytes
    weights = count.total * element
    if isinstance(method, QLora):
        wide = 4 if kernels.wide_residual else element
        packed = sum(times * matrix.weights for times, matrix in packed_matrices(arch))
        weights = (count.total - packed) * wide + nf4_bytes(packed, method.double_quantisation)
    elif method.base == "float8":
        # One byte a weight, by rows and again by columns, and an fp32 scale for each of either.
        packed = sum(times * matrix.weights for times, matrix in packed_matrices(arch))
        sides = sum(times * (matrix.outputs + matrix.inputs) for times, matrix in packed_matrices(arch))
        weights = (count.total - packed) * element + 2 * packed + 4 * sides
    masters = size == 2 and kernels.masters and not without_masters(optimizer)
    wide = 4 if masters else size
    states = adapters * 4 * masters + moments(arch, method, optimizer, wide=wide)
    return Resident(weights, adapters * size, adapters * (size if narrow else wide), states, adapters)


def narrow_gradients(kernels: Kernels, shape: TrainingShape) -> bool:
    """Whether a step's gradients are never added up, so that they stay in the weights' type.

    Texts that are compared are one micro-batch, however many pieces they go through the model in: autograd
    gathers the pieces' gradients before it hands a weight its own.
    """
    whole = shape.accumulation == 1 or bool(shape.compared)
    alone = whole and shape.shard == 1 and not shape.added_up
    return kernels.fused_update and kernels.masters and shape.optimizer == "adamw" and alone


def nf4_bytes(weights: int, double: bool) -> int:
    """Bytes of weights in NF4: half a byte each and one scale a block, fp32 or (double) one byte."""
    blocks = -(-weights // NF4_BLOCK)
    scales = blocks + 4 * (-(-blocks // 256)) if double else 4 * blocks
    return -(-weights // 2) + scales
