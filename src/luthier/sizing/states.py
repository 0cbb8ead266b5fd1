"""What an optimiser keeps for the weights that it trains. Sizes in bytes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from luthier.schema.model import Architecture
from luthier.schema.recipe import Lora, Method, OptimizerName, without_masters
from luthier.sizing.layers import Matrix, distinct_layers, layer_matrices
from luthier.sizing.parameters import (
    ParameterCount,
    count_parameters,
    expert_tensors,
    new_rows,
    target_matrices,
)

LEAST_IN_EIGHT_BITS = 4096
"""Numbers of a tensor whose moments are kept in eight bits; smaller ones stay in fp32 (bitsandbytes 0.50,
``min_8bit_size``)."""
LEAST_PAGED = 100_000
"""Numbers of a tensor whose moments are paged; smaller ones lie in ordinary memory (``get_state_buffer``)."""
BLOCK = 256
"""Numbers that share a scale in fp32."""
UPDATE_NUMBERS = 1 << 24
"""Numbers that an update in bf16 with rounding by chance works on at once (training.rounding cuts by it)."""
UPDATE_BYTES = {2: 31, 4: 20}
"""What stands beside each of them at the height, by the bytes of a weight: gradient, moments, weight and
denominator in fp32, for bf16 the drawn bits with what is made of them (counted on tensors without data)."""


def moments(arch: Architecture, method: Method, optimizer: OptimizerName, *, wide: int) -> int:
    """Both moments of all trained weights on the device.

    wide: bytes of a moment where the optimiser keeps it whole. Of paged moments only the scales count:
    the rest moves to the host's memory when the device's is short.
    """
    trained = sum(times * size for times, size in trained_tensors(arch, method))
    if optimizer in ("adamw", "adamw-bf16"):
        return 2 * wide * trained
    if optimizer == "adamw-bf16-kahan":
        return 3 * wide * trained  # and what rounding has lost
    if optimizer == "muon":
        return wide * (2 * trained - sum(times * matrix.weights for times, matrix in muon_matrices(arch)))
    held = 0
    for times, size in trained_tensors(arch, method):
        if size < LEAST_IN_EIGHT_BITS:
            held += times * 8 * size
            continue
        paged = optimizer == "paged-adamw-8bit" and size >= LEAST_PAGED
        held += times * (2 * 4 * -(-size // BLOCK) + (0 if paged else 2 * size))
    return held


def muon_matrices(arch: Architecture) -> Iterator[tuple[int, Matrix]]:
    """(how many, which) of the matrices that Muon updates: those of the layers, each on its own.

    Experts that lie in one tensor are none: AdamW updates them.
    """
    for index, times in distinct_layers(arch):
        yield from ((times, matrix) for matrix in layer_matrices(arch, index) if matrix.copies == 1)


def update_flops(arch: Architecture, optimizer: OptimizerName) -> float:
    """Operations of one update beyond a few a weight: Muon's five iterations, each of three products."""
    if optimizer != "muon":
        return 0.0
    sides = ((times, sorted((m.inputs, m.outputs))) for times, m in muon_matrices(arch))
    return sum(times * 5.0 * (4 * low * low * high + 2 * low**3) for times, (low, high) in sides)


def checkpoint_bytes(
    arch: Architecture, method: Method, optimizer: OptimizerName, *, element: int, average: bool = False
) -> int:
    """What a checkpoint holds: the trained weights in full precision, and both moments wherever they lie.

    element: bytes of one of the model's weights. average: whether it holds their moving average too.
    """
    trained = sum(times * size for times, size in trained_tensors(arch, method))
    own = element if not isinstance(method, Lora) else (2 if method.adapter_dtype == "bfloat16" else 4)
    wide = own if without_masters(optimizer) else 4
    paged = paged_bytes(arch, method) if optimizer == "paged-adamw-8bit" else 0
    return trained * (wide + 4 * average) + moments(arch, method, optimizer, wide=wide) + paged


def paged_bytes(arch: Architecture, method: Method) -> int:
    """Moments that a paged optimiser may leave in the host's memory."""
    return sum(2 * times * size for times, size in trained_tensors(arch, method) if size >= LEAST_PAGED)


def update_bytes(
    arch: Architecture, method: Method, optimizer: OptimizerName, *, wide: int, fused: bool = False
) -> int:
    """What the update makes for a moment, a tensor or part of one at a time; fused kernels make nothing.

    fused: whether weights in bf16 alone have one too (CUDA).
    """
    if optimizer == "muon":
        # In fp32 with Nesterov's momentum, twice in bf16, and two products of it with itself.
        matrices = [matrix for _, matrix in muon_matrices(arch)]
        return max((8 * m.weights + 4 * min(m.inputs, m.outputs) ** 2 for m in matrices), default=0)
    if fused or not without_masters(optimizer):
        return 0
    largest = max(size for _, size in trained_tensors(arch, method))
    return UPDATE_BYTES[wide] * min(largest, UPDATE_NUMBERS)


@lru_cache(maxsize=256)
def trained_tensors(arch: Architecture, method: Method) -> tuple[tuple[int, int], ...]:
    """(how many, numbers) of the tensors that are trained."""
    return tuple(_adapters(arch, method) if isinstance(method, Lora) else _weights(arch))


def _adapters(arch: Architecture, method: Lora) -> Iterator[tuple[int, int]]:
    for times, matrix in target_matrices(arch, method.targets):
        yield times, method.rank * matrix.inputs
        yield times, method.rank * matrix.outputs
        if method.dora:
            yield times, matrix.outputs
    yield from expert_tensors(arch, method)
    if arch.new_tokens:
        yield new_rows(arch)


def _weights(arch: Architecture) -> Iterator[tuple[int, int]]:
    """Matrices and biases one by one; norms and what is not described as tensors of the hidden size."""
    assert isinstance(arch, Architecture)
    count: ParameterCount = count_parameters(arch)
    named = 0
    for index, times in distinct_layers(arch):
        for matrix in layer_matrices(arch, index):
            named += times * (matrix.weights + matrix.biases)
            yield times, matrix.weights
            if matrix.biases:
                yield times, matrix.biases
    for table in (arch.vocab_size, arch.position_embeddings, arch.token_types):
        if table:
            yield 1, table * arch.hidden_size
    if count.head:
        yield 1, count.head
    rest = count.backbone - named - count.embedding - count.head
    if rest:
        yield -(-rest // arch.hidden_size), arch.hidden_size
