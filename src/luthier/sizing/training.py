"""Memory of a training run in closed form: what is held at each phase, part by part.

The tensors are enumerated as the trainer makes them, not fitted. Each formula's parts are in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from luthier.errors import UsageError
from luthier.schema.estimate import EvaluationShape, Part, Phase, TrainingShape
from luthier.schema.model import Architecture
from luthier.schema.recipe import Full, Lora, Method, QLora
from luthier.sizing.activations import OURS, Kernels, Layer
from luthier.sizing.parameters import ParameterCount, count_parameters, lora_parameters

BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
MIB = 1 << 20
CHUNK_NUMBERS = 1 << 24
"""Logits that the chunked loss holds at once (training.losses has the same number)."""
LEAST_CHUNK_ROWS = 16
NF4_BLOCK = 64
CUBLAS_WORKSPACE = {True: 32 * MIB, False: 8_519_680}
"""Bytes of one cuBLAS handle's workspace, on Hopper and after, and before it (ATen's
getChosenWorkspaceSize); the forward and the autograd thread have one each."""


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Phases of one step with what is held at the height of each, and the trained parameters."""

    phases: tuple[Phase, ...]
    trainable: int
    total: int

    @property
    def peak(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.total)


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


def resident(
    arch: Architecture, count: ParameterCount, method: Method, dtype: str, kernels: Kernels
) -> Resident:
    """Weights, adapters, gradients and optimiser states of AdamW."""
    element = BYTES[dtype]
    if isinstance(method, Full):
        trained = count.backbone
        if kernels.masters and element == 2:
            return Resident(count.total * 2, 0, trained * 4, trained * (4 + 8), trained)
        return Resident(count.total * element, 0, trained * element, trained * 2 * element, trained)
    assert isinstance(method, Lora)
    adapters = lora_parameters(arch, method.rank, method.targets)
    if method.dora:
        from luthier.sizing.parameters import target_matrices

        adapters += sum(m.outputs for _, m in target_matrices(arch, method.targets))
    size = kernels.adapter_bytes
    weights = count.total * element
    if isinstance(method, QLora):
        wide = 4 if kernels.wide_residual else element
        weights = (count.total - count.linear) * wide + nf4_bytes(count.linear, method.double_quantisation)
    moments = 2 * size if size == 4 or not kernels.masters else 12
    return Resident(weights, adapters * size, adapters * size, adapters * moments, adapters)


def nf4_bytes(weights: int, double: bool) -> int:
    """Bytes of weights in NF4: half a byte each and one scale a block, fp32 or (double) one byte."""
    blocks = -(-weights // NF4_BLOCK)
    scales = blocks + 4 * (-(-blocks // 256)) if double else 4 * blocks
    return -(-weights // 2) + scales


def training_memory(
    arch: Architecture,
    method: Method,
    shape: TrainingShape,
    *,
    dtype: str,
    kernels: Kernels = OURS,
    hopper: bool = False,
    cuda: bool = True,
) -> TrainingMemory:
    """Tensors of one training step by phase, the caching allocator's rounding and the context not counted.

    hopper: whether cuBLAS takes its larger workspace. cuda: False leaves that workspace out.
    Errors: UsageError for a shape of no tokens or beyond the model's positions.
    """
    check_shape(arch, shape)
    count = count_parameters(arch)
    held = resident(arch, count, method, dtype, kernels)
    element = 4 if kernels.wide_residual else BYTES[dtype]
    tokens = shape.tokens
    documents = shape.micro_batch_size * shape.documents
    span = shape.sequence_length // shape.documents
    layers = [
        Layer(arch, index, method, kernels, element, span, documents).memory for index in range(arch.layers)
    ]
    first, last = layers[0], layers[-1]
    checkpoints = shape.activation_checkpointing == "full"
    kept = sum(layer.kept for layer in layers)
    stream = arch.hidden_size * element
    outside = _outside(arch, method, element)
    dequantised = _dequantised(arch, method)
    if checkpoints:
        held_through = tokens * (arch.layers * stream + outside)
        top = held_through + tokens * (last.kept + last.transient) + dequantised
        bottom = tokens * (stream + outside + first.kept + first.transient) + dequantised
    else:
        held_through = tokens * (kept + outside)
        top = held_through + tokens * last.transient + dequantised
        bottom = tokens * (first.kept + first.transient + outside) + dequantised
    logits, head_gradient = _loss(arch, method, shape, kernels, element)
    alive = tokens * arch.vocab_size * element if kernels.keeps_logits and kernels.loss == "logits" else 0
    workspace = 2 * CUBLAS_WORKSPACE[hopper] if cuda else 0
    buffers = tokens * (4 * 8 + 2 * arch.head_dim * element)
    lasting: dict[Part, int] = {
        "weights": held.weights,
        "adapters": held.adapters,
        "optimizer": held.optimizer,
        "buffers": buffers,
        "workspace": workspace,
    }
    early = held.gradients if shape.accumulation > 1 else 0
    one_gradient = _largest_gradient(arch, count, method, dtype, kernels)
    starts = (top, early + head_gradient, alive)
    ends = (bottom, held.gradients + head_gradient + one_gradient, alive)
    activations, gradients, logits_back = max(starts, ends, key=sum)
    grown: dict[Part, int] = {**lasting, "optimizer": held.optimizer}
    forward = Phase(
        name="forward",
        parts={**grown, "gradients": early, "activations": round(held_through), "logits": round(logits)},
    )
    backward = Phase(
        name="backward",
        parts={
            **grown,
            "gradients": round(gradients),
            "activations": round(activations),
            "logits": round(logits_back),
        },
    )
    step = Phase(
        name="optimizer",
        parts={
            **grown,
            "gradients": held.gradients + (held.adapters or held.weights) * kernels.foreach,
            "activations": 0,
            "logits": round(alive),
        },
    )
    load = Phase(name="load", parts={"weights": held.weights})
    return TrainingMemory((load, forward, backward, step), held.trainable, count.total + held.trainable
                          if held.adapters else count.total)  # fmt: skip


def check_shape(arch: Architecture, shape: TrainingShape) -> None:
    """Refuse a shape that cannot be trained. Errors: UsageError."""
    for name in ("micro_batch_size", "sequence_length", "documents"):
        if getattr(shape, name) < 1:
            raise UsageError(f"{name} is {getattr(shape, name)}", hint="it must be at least 1")
    if arch.max_positions is not None and shape.sequence_length > arch.max_positions * shape.documents:
        raise UsageError(
            f"a sequence of {shape.sequence_length:,} tokens is beyond the model's context of "
            f"{arch.max_positions:,}",
            hint=f"set training.sequence_length to at most {arch.max_positions}",
        )
    if not 0 <= shape.trained_share <= 1:
        raise UsageError(f"a share of {shape.trained_share} of the tokens cannot be trained on")


def _outside(arch: Architecture, method: Method, element: int) -> float:
    """Kept outside the layers, bytes a token: the final norm and its output."""
    h = arch.hidden_size
    return 4 * h + h * element * (2 if isinstance(method, Full) else 1)


def _dequantised(arch: Architecture, method: Method) -> int:
    """One 4-bit weight widened for its product."""
    if not isinstance(method, QLora):
        return 0
    return 2 * arch.hidden_size * max(arch.intermediate_size, arch.attention_heads * arch.head_dim)


def _loss(
    arch: Architecture, method: Method, shape: TrainingShape, kernels: Kernels, element: int
) -> tuple[float, int]:
    """(bytes at the height of the loss, bytes of the head's gradient that stay through the backward pass)."""
    h, vocab, tokens = arch.hidden_size, arch.vocab_size, shape.tokens
    if not arch.head:
        return 0.0, 0
    full = isinstance(method, Full)
    weight = vocab * h
    if kernels.loss == "logits":
        # Logits in the model's type, their fp32 copy, log-probabilities, and in the backward pass a gradient.
        numbers = 14 if element == 2 else 16
        return tokens * vocab * numbers + tokens * h * (element + 4), 0
    if kernels.loss == "fused":
        increments = -(-vocab // h)
        chunk = 1 << max(0, (-(-tokens // increments) - 1).bit_length())
        return chunk * vocab * (2 * element + 4) + 2.0 * tokens * h * element, weight * 4 if full else 0
    trained = tokens * shape.trained_share
    rows = min(trained, float(max(LEAST_CHUNK_ROWS, CHUNK_NUMBERS // vocab)))
    # fp32 logits with the temporary of logsumexp, or with their 16-bit gradient: the first is larger.
    height = rows * vocab * 8.0 + 2.0 * trained * h * element
    if full:
        height += weight * (4 + element)
        return height, weight * (4 if arch.tied_embeddings else 0)
    return height, 0


def _largest_gradient(
    arch: Architecture, count: ParameterCount, method: Method, dtype: str, kernels: Kernels
) -> int:
    """The gradient in the model's type that exists beside the collected ones."""
    if not isinstance(method, Full):
        return 0
    if kernels.masters and BYTES[dtype] == 2:
        return max(count.embedding, arch.hidden_size * arch.intermediate_size) * 2
    return count.embedding * BYTES[dtype] if arch.tied_embeddings else 0


def evaluation_phase(
    arch: Architecture, shape: EvaluationShape, held: Resident, *, dtype: str, cuda: bool
) -> Phase:
    """Generation with a cache, beside weights and adapters."""
    from luthier.sizing.serving import cache_bytes_per_token

    element = BYTES[dtype]
    longest = shape.prompt_tokens + shape.new_tokens
    tokens = shape.batch_size * shape.prompt_tokens
    widest = max(2 * arch.intermediate_size + arch.hidden_size, 4 * arch.hidden_size)
    return Phase(
        name="evaluate",
        parts={
            "weights": held.weights,
            "adapters": held.adapters,
            # The cache grows by copying: one layer stands there twice.
            "buffers": round(
                shape.batch_size * longest * cache_bytes_per_token(arch, element) * (1 + 1 / arch.layers)
            ),
            "activations": tokens * widest * element * 2,
            "logits": shape.batch_size * arch.vocab_size * (4 + element),
            "workspace": CUBLAS_WORKSPACE[False] if cuda else 0,
        },
    )
