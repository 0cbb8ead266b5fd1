"""Memory of a model that answers: key/value cache, compute buffers, the largest context that fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from luthier.catalog.gguf_types import BLOCK_OF, BYTES_OF
from luthier.errors import UsageError
from luthier.schema.model import Architecture, LayerKind
from luthier.sizing.layers import heads_of, layer_kinds
from luthier.sizing.parameters import count_parameters

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
CACHE_BYTES: dict[CacheType, float] = {
    kind: BYTES_OF[kind.upper()] / BLOCK_OF[kind.upper()] for kind in get_args(CacheType)
}
"""Bytes of one number in the cache."""
CELLS = 256
"""llama.cpp rounds a cache up to this many tokens."""
UBATCH = 512
"""Tokens that llama.cpp computes at once by default."""
USUAL_CONTEXT = 8_192
"""Tokens of a slot that nobody asked for: enough for a conversation, cheap to hold."""
SERVER_SHARE = 0.92
"""Share of free memory that a server may take; the rest is for the runtime and other programs."""
VLLM_SHARE = 0.92
"""Share of a GPU's memory that vLLM takes by default (0.90 before 2026)."""
VLLM_BLOCK = 16
"""Tokens in one of vLLM's blocks."""


@dataclass(frozen=True, slots=True)
class ServingMemory:
    """What llama.cpp holds while it serves. Bytes."""

    weights: int
    cache: int
    compute: int
    """Buffers of the computation graph: hidden states, masks, and scores without flash attention."""
    output: int
    """Logits of one token for each slot."""

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.compute + self.output


def values_per_token(arch: Architecture, kind: LayerKind) -> int:
    """Numbers that one layer caches for one token."""
    if kind not in ("full", "sliding"):
        return 0
    if arch.latent_attention is not None:
        return arch.latent_attention.kv_rank + arch.latent_attention.rope_dim
    _, kv_heads, width = heads_of(arch, kind)
    return 2 * kv_heads * width


def cache_bytes_per_token(arch: Architecture, element: float) -> float:
    """Cache of one token over all layers, sliding ones counted as if they kept it."""
    return sum(values_per_token(arch, kind) for kind in layer_kinds(arch)) * element


def cache_bytes(
    arch: Architecture,
    context: int,
    *,
    slots: int = 1,
    cache_type: CacheType = "f16",
    ubatch: int = UBATCH,
    whole_window: bool = False,
) -> int:
    """llama.cpp's key/value cache. context: tokens of one slot.

    A full layer keeps every token, rounded up to 256; a sliding one its window and one batch, for each
    slot (``--swa-full``, here whole_window, makes it keep everything). Linear-attention states are not
    counted: they are a few megabytes whatever the context. Errors: UsageError.
    """
    if context < 1 or slots < 1:
        raise UsageError(f"a context of {context} tokens in {slots} slots cannot be served")
    element = CACHE_BYTES[cache_type]
    total = 0.0
    for kind in layer_kinds(arch):
        cells = _padded(context)
        if kind == "sliding" and arch.sliding_window is not None and not whole_window:
            cells = min(cells, _padded(arch.sliding_window + ubatch))
        total += values_per_token(arch, kind) * element * cells * slots
    return round(total)


def compute_bytes(
    arch: Architecture, context: int, *, ubatch: int = UBATCH, flash_attention: bool = True
) -> int:
    """llama.cpp's compute buffer on its CPU backend; other backends differ by tens of megabytes.

    Five hidden states and three MLP states of a batch in fp32, a mask for each kind of attention, and
    without flash attention one layer's scores. Found on 15 points (benchmarks/memory/llamacpp.json),
    within 4 % of each.
    """
    kinds = set(layer_kinds(arch))
    total = ubatch * 4 * (3 * arch.intermediate_size + 5 * arch.hidden_size + 10)
    if "full" in kinds:
        total += ubatch * _padded(context) * 2
    if "sliding" in kinds and arch.sliding_window is not None:
        total += ubatch * min(_padded(context), _padded(arch.sliding_window + ubatch)) * 2
    if not flash_attention:
        total += arch.attention_heads * ubatch * _padded(context) * 4
    return total


def serving_memory(
    arch: Architecture,
    weights: int,
    context: int,
    *,
    slots: int = 1,
    cache_type: CacheType = "f16",
    flash_attention: bool = True,
    ubatch: int = UBATCH,
) -> ServingMemory:
    """All that llama.cpp holds for a model file of that size. context: tokens of one slot."""
    return ServingMemory(
        weights,
        cache_bytes(arch, context, slots=slots, cache_type=cache_type, ubatch=ubatch),
        compute_bytes(arch, context, ubatch=ubatch, flash_attention=flash_attention),
        slots * arch.vocab_size * 4,
    )


def largest_context(need: Callable[[int], int], budget: int, *, most: int) -> int | None:
    """The longest context (a multiple of 256, or ``most``) whose need stays within the budget; None if none.

    need: bytes for a context, never less for a longer one.
    """
    if need(min(CELLS, most)) > budget:
        return None
    low, high = 1, most // CELLS
    while low < high:
        middle = (low + high + 1) // 2
        if need(middle * CELLS) <= budget:
            low = middle
        else:
            high = middle - 1
    return most if need(most) <= budget else low * CELLS


@dataclass(frozen=True, slots=True)
class VllmPool:
    """vLLM's paged cache. Sizes in bytes."""

    pool: int
    tokens: int
    """Tokens that fit, over all requests."""
    concurrency: float
    """Requests of the whole context that fit at once."""


def vllm_pool(
    arch: Architecture,
    *,
    gpu_memory: int,
    context: int,
    share: float = VLLM_SHARE,
    weight_bytes: float = 2.0,
    element: float = 2.0,
    batched_tokens: int = 8192,
    graphs: int = 1 << 30,
) -> VllmPool:
    """What is left for vLLM's cache, and how many requests of that context it holds.

    weight_bytes: bytes of one parameter. batched_tokens: tokens of the profiling run, whose height is
    taken as one MLP state and the logits of 256 requests. graphs: CUDA graphs and what is not torch's.
    """
    weights = count_parameters(arch).total * weight_bytes
    activations = batched_tokens * (2 * arch.intermediate_size + 2 * arch.hidden_size) * element
    logits = 256 * arch.vocab_size * 4
    pool = int(gpu_memory * share - weights - activations - logits - graphs)
    block = cache_bytes_per_token(arch, element) * VLLM_BLOCK
    blocks = max(0, int(pool // block)) if block else 0
    tokens = blocks * VLLM_BLOCK
    return VllmPool(max(0, pool), tokens, tokens / context)


def _padded(tokens: int) -> int:
    return -(-tokens // CELLS) * CELLS
