"""Memory of a model that answers: key/value cache, compute buffers, the largest context that fits."""

from __future__ import annotations

from luthier.schema.model import Architecture
from luthier.sizing.layers import heads_of, layer_kinds


def cache_bytes_per_token(arch: Architecture, element: float) -> float:
    """Keys and values of one token over all layers with softmax attention, sliding layers counted in full."""
    total = 0.0
    for kind in layer_kinds(arch):
        if kind not in ("full", "sliding"):
            continue
        if arch.latent_attention is not None:
            total += (arch.latent_attention.kv_rank + arch.latent_attention.rope_dim) * element
            continue
        _, kv_heads, width = heads_of(arch, kind)
        total += 2 * kv_heads * width * element
    return total
