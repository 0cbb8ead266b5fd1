"""How a tuned model would run on its target: quantisation, context, memory, tokens a second."""

from __future__ import annotations

from luthier.schema.base import Range
from luthier.schema.hardware import Hardware
from luthier.schema.model import Architecture, ModelCard
from luthier.schema.plan import Serving
from luthier.schema.request import Request
from luthier.sizing.gguf import gguf_bytes
from luthier.sizing.parameters import count_parameters
from luthier.sizing.serving import cache_bytes

QUANTISATIONS = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M")
"""From the most exact to the smallest; the first that fits is taken, but none above Q8_0 without need."""
USUAL_CONTEXT = 8_192
METADATA = 16_000_000
"""Bytes of tokenizer and header, at their upper end."""
BUFFERS = 200 * 2**20
"""Compute buffers and runtime with flash attention: about 50 to 150 MiB on measured runs."""
MAC_OR_GPU_SHARE = 0.92
RAM_SHARE = 0.8
EFFICIENCY = (0.5, 0.65, 0.8)
"""Share of the memory bandwidth that decoding reaches: low, expected, high (prior, not measured here)."""


def suggest(card: ModelCard, request: Request, target: Hardware) -> Serving | None:
    """The most exact quantisation that fits the target with the context asked for; None without a shape."""
    shape = card.architecture
    if shape is None or card.total is None:
        return None
    if card.kind not in ("decoder", "vision-language"):
        return _encoder(card, target)
    available = _available(target)
    wanted = min(request.context or USUAL_CONTEXT, card.context.native or USUAL_CONTEXT)
    images = 2 * (card.parameters.towers or 0) if request.reads_images else 0
    if not card.gguf.supported:
        weights, cache = 2 * card.total, cache_bytes(shape, wanted)
        why = "no GGUF: served by transformers or vLLM in 16 bits"
        return _served(shape, "transformers", "bf16", wanted, weights, cache, available, target, why)
    for quantisation in QUANTISATIONS[1:]:
        weights = gguf_bytes(shape, quantisation, metadata=METADATA) + images
        cache = cache_bytes(shape, wanted)
        if weights + cache + BUFFERS <= available:
            return _served(shape, "llama.cpp", quantisation, wanted, weights, cache, available, target)
    context = wanted
    weights = gguf_bytes(shape, "Q4_K_M", metadata=METADATA) + images
    while context > 512 and weights + cache_bytes(shape, context) + BUFFERS > available:
        context //= 2
    note = None if context == wanted else f"the context was cut from {wanted:,} tokens to fit"
    cache = cache_bytes(shape, context)
    return _served(shape, "llama.cpp", "Q4_K_M", context, weights, cache, available, target, note)


def _available(target: Hardware) -> int:
    if target.accelerators:
        return int(max(gpu.memory_free for gpu in target.accelerators) * MAC_OR_GPU_SHARE)
    return int(target.memory_free * RAM_SHARE)


def _encoder(card: ModelCard, target: Hardware) -> Serving:
    assert card.total is not None
    weights, available = 2 * card.total, _available(target)
    runtime = "sentence-transformers" if card.kind != "encoder" else "transformers"
    total = weights + BUFFERS
    return Serving(
        runtime=runtime,
        quantisation="F16",
        context=card.context.native or 512,
        slots=1,
        weights=weights,
        cache=0,
        total=total,
        available=available,
        fits=total <= available,
    )


def _served(  # noqa: PLR0917 (one figure each, in the order of the sentence that shows them)
    shape: Architecture,
    runtime: str,
    quantisation: str,
    context: int,
    weights: int,
    cache: int,
    available: int,
    target: Hardware,
    note: str | None = None,
) -> Serving:
    total = weights + cache + BUFFERS
    return Serving(
        runtime=runtime,
        quantisation=quantisation,
        context=context,
        slots=1,
        weights=weights,
        cache=cache,
        total=total,
        available=available,
        fits=total <= available,
        tokens_per_second=_rate(shape, weights, cache, target),
        note=note,
    )


def _rate(shape: Architecture, weights: int, cache: int, target: Hardware) -> Range | None:
    """Decoding reads the active weights and the cache once a token; None where no bandwidth is known."""
    bandwidths = [gpu.bandwidth for gpu in target.accelerators if gpu.bandwidth]
    if not bandwidths:
        return None
    count = count_parameters(shape)
    read = weights * count.active / max(1, count.total) + cache / 2
    low, expected, high = (share * max(bandwidths) / read for share in EFFICIENCY)
    return Range(low=low, expected=expected, high=high)
