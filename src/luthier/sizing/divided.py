"""Weights that several devices hold together: one device's part, and what it gathers of the others'."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.schema.estimate import TrainingShape
from luthier.schema.model import Architecture
from luthier.schema.recipe import Full, Method, without_masters
from luthier.sizing.activations import Kernels
from luthier.sizing.layers import distinct_layers, layer_matrices
from luthier.sizing.parameters import count_parameters
from luthier.sizing.resident import BYTES, Resident


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a device holds of weights that are divided, beside its own part. Bytes."""

    forward: int = 0
    """At the end of the forward pass."""
    last: int = 0
    """In the backward pass of the last layer, with gradients on their way to their owners."""
    first: int = 0
    """In that of the first layer."""
    gradients: int = 0
    """Whole gradients, where they are added up before they are sent."""


def divided(held: Resident, arch: Architecture, method: Method, shape: TrainingShape, *, dtype: str,
            kernels: Kernels) -> tuple[Resident, Gathered]:  # fmt: skip
    """One device's part where so many hold the weights together (`training.sharding`), and what it gathers.

    Trained bf16 weights lie there in fp32 and are their own masters. Gathered are embeddings, head and last
    norm, with the layer that runs and the next one, or (``shape.reshard``) with all layers: from the end of
    the forward pass to each one's backward pass, or for the whole step. Frozen ones outside the layers are
    not divided. Gradients are whole, a layer at a time, in the weights' type, and in fp32 while they are
    added up; those outside the layers wait for the end. For the whole step all of them are whole, in the
    type in which they are added up.
    """
    element, count, parts = BYTES[dtype], count_parameters(arch), shape.shard
    full = isinstance(method, Full)
    wide = full and kernels.masters and element == 2 and not without_masters(shape.optimizer)
    weights, optimizer = held.weights, held.optimizer
    if wide:
        weights, optimizer = weights + held.trainable * (4 - element), optimizer - held.trainable * 4
    outside = count.embedding + count.per_layer_embeddings + count.head + arch.hidden_size
    each = (held.weights - outside * element) / max(1, count.total - outside)
    numbers = max(
        sum(matrix.weights + matrix.biases for matrix in layer_matrices(arch, index))
        for index, _ in distinct_layers(arch)
    )
    layers, root = round(2 * numbers * each), outside * element
    summed = 4 if wide else element
    kept = 0 if full else root
    own = Resident(
        kept - (-(weights - kept) // parts), -(-held.adapters // parts), -(-held.gradients // parts),
        -(-optimizer // parts), held.trainable,
    )  # fmt: skip
    sent = numbers * (element + summed) if full else 0
    two = root - kept + layers
    first = 2 * root + max(layers + sent, outside * summed) if full else two
    if shape.reshard == "layer":
        return own, Gathered(two, first, first)
    whole = held.weights + held.adapters - kept
    last = whole + (root + sent if full else 0)
    if shape.reshard == "backward" or shape.accumulation == 1:
        return own, Gathered(whole, last, first)
    return own, Gathered(whole, last, last, held.gradients)
