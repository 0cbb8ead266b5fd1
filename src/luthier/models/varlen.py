"""One attention kernel for documents of different lengths laid end to end, on CUDA in half precision."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch.nn.attention.varlen import varlen_attn

if TYPE_CHECKING:
    from torch import Tensor

# Since torch 2.13 fewer key heads than query heads must be asked for; before, they were just taken.
_GROUPED = "enable_gqa" in inspect.signature(varlen_attn).parameters


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Tensor,
    longest: int,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Causal attention within each document: [tokens, heads, head_dim].

    query: [tokens, heads, head_dim]; key, value: [tokens, kv_heads, head_dim]; ends: [documents + 1]
    int32, 0 first; longest: no document is longer; window: how many places each sees, itself included.
    """
    grouped: dict[str, Any] = {}
    if query.shape[1] != key.shape[1] and _GROUPED:
        grouped["enable_gqa"] = True
    out: Tensor = varlen_attn(  # type: ignore[assignment]
        query,
        key,
        value,
        ends,
        ends,
        longest,
        longest,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        **grouped,
    )
    return out
