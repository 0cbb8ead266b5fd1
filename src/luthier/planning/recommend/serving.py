"""How a tuned model would run on its target: quantisation, context, memory, tokens a second."""

from __future__ import annotations

import math

from luthier.schema.base import Range
from luthier.schema.hardware import Hardware
from luthier.schema.model import Architecture, ModelCard
from luthier.schema.plan import ScorePart, Serving
from luthier.schema.request import Request
from luthier.sizing.gguf import gguf_bytes
from luthier.sizing.parameters import count_parameters
from luthier.sizing.serving import SERVER_SHARE, USUAL_CONTEXT, cache_bytes

QUANTISATIONS = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M")
"""From the most exact to the smallest; the first that fits and answers fast enough is taken, but none above
Q8_0 without need."""
METADATA = 16_000_000
"""Bytes of tokenizer and header, at their upper end."""
BUFFERS = 200 * 2**20
"""Compute buffers and runtime with flash attention: about 50 to 150 MiB on measured runs."""
RAM_SHARE = 0.8
ONE_CHANNEL = 25.6e9
"""Bytes/s of one channel of DDR4-3200, taken where a machine's memory is not known."""
READABLE = 10.0
"""Tokens a second that keep ahead of a reader: silent reading is 238 words a minute (Brysbaert 2019), about
5 tokens a second. A more exact quantisation is taken only while answers come at least this fast."""
READABLE_DOUBLING = -8.0
"""Points for each halving below that, where the target was named."""
SMALL_BYTES = 0.62
"""Bytes a parameter in Q4_K_M of most decoders; 0.60 to 0.80, and 0.92 for the smallest."""
LEAST_BYTES, MOST_BYTES = 0.55, 0.95
"""Bounds of it: what lies outside needs no exact file size."""
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
    cache = cache_bytes(shape, wanted)
    fitting: list[Serving] = []
    for quantisation in QUANTISATIONS[1:]:
        weights = gguf_bytes(shape, quantisation, metadata=METADATA) + images
        if weights + cache + BUFFERS > available:
            continue
        found = _served(shape, "llama.cpp", quantisation, wanted, weights, cache, available, target)
        if found.tokens_per_second is None or found.tokens_per_second.expected >= READABLE:
            return found
        fitting.append(found)
        if quantisation == "Q4_K_M":
            break
    if fitting:
        return fitting[-1]
    context = wanted
    weights = gguf_bytes(shape, "Q4_K_M", metadata=METADATA) + images
    while context > 512 and weights + cache_bytes(shape, context) + BUFFERS > available:
        context //= 2
    note = None if context == wanted else f"the context was cut from {wanted:,} tokens to fit"
    cache = cache_bytes(shape, context)
    return _served(shape, "llama.cpp", "Q4_K_M", context, weights, cache, available, target, note)


def too_large_for(card: ModelCard, request: Request, target: Hardware) -> str | None:
    """Why the tuned model cannot run on a target that was named, or None. Decoders are taken in Q4_K_M."""
    shape, available = card.architecture, _available(target)
    if shape is None or card.total is None:
        return None
    if card.kind not in ("decoder", "vision-language") or not card.gguf.supported:
        needed = 2 * card.total + BUFFERS
        what = "in 16 bits"
    else:
        context = min(request.context or USUAL_CONTEXT, card.context.native or USUAL_CONTEXT)
        rest = cache_bytes(shape, context) + BUFFERS
        rest += 2 * (card.parameters.towers or 0) if request.reads_images else 0
        what = f"in Q4_K_M with {context:,} tokens"
        if MOST_BYTES * card.total + rest <= available:
            return None
        weights = int(LEAST_BYTES * card.total)
        if weights + rest <= available:
            weights = gguf_bytes(shape, "Q4_K_M", metadata=METADATA)
        needed = weights + rest
    if needed <= available:
        return None
    room = f"{available / 2**30:.1f} are there for it"
    return f"{what} it needs {needed / 2**30:.1f} GiB, {room} ({request.target})"


def answering(card: ModelCard, request: Request, target: Hardware) -> ScorePart | None:
    """Points off where answers would come slower than they are read; None for what writes none."""
    if card.kind not in ("decoder", "vision-language") or not card.total:
        return None
    active = card.parameters.active or card.total
    rate = EFFICIENCY[1] * _bandwidth(target) / (SMALL_BYTES * active)
    points = 0.0 if rate >= READABLE else READABLE_DOUBLING * math.log2(READABLE / rate)
    return ScorePart(
        name="target", points=points, why=f"about {rate:.0f} tokens/s on {request.target} in Q4_K_M"
    )


def _bandwidth(target: Hardware) -> float:
    """Bytes/s that answers are read at: the fastest accelerator's, else the processor's memory."""
    known = [gpu.bandwidth for gpu in target.accelerators if gpu.bandwidth]
    return max(known) if known else target.bandwidth or ONE_CHANNEL


def _available(target: Hardware) -> int:
    if target.accelerators:
        return int(max(gpu.memory_free for gpu in target.accelerators) * SERVER_SHARE)
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
        note=note or _assumed(target),
    )


def _assumed(target: Hardware) -> str | None:
    if target.accelerators or target.bandwidth is not None:
        return None
    return "this machine's memory bandwidth is not known: one channel of DDR4-3200 taken"


def _rate(shape: Architecture, weights: int, cache: int, target: Hardware) -> Range | None:
    """Decoding reads the active weights and the cache once a token; None for a GPU of unknown bandwidth."""
    if target.accelerators and not any(gpu.bandwidth for gpu in target.accelerators):
        return None
    count = count_parameters(shape)
    read = weights * count.active / max(1, count.total) + cache / 2
    low, expected, high = (share * _bandwidth(target) / read for share in EFFICIENCY)
    return Range(low=low, expected=expected, high=high)
