"""Attention over documents laid end to end in one row, never across their borders.

A batch of rows of different lengths, or of packed rows, is flattened to ``[1, tokens]`` without any
padding; each document then attends to itself alone. On a CPU (and in fp32 on a GPU) that is one
causal SDPA call a document; on CUDA in half precision it is torch's variable-length kernel.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NAME = "luthier_documents"
_KINDS = frozenset({"full_attention", "sliding_attention"})


def supports_documents(model: Any) -> bool:
    """Whether the model's attention can be exchanged and has no state that crosses tokens otherwise.

    True for families that go through transformers' attention interface with full or sliding layers
    only. Others (linear attention, recurrent layers, learned sinks) are padded instead.
    """
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    sinks = any(hasattr(module, "sinks") for module in model.modules())
    return bool(getattr(model, "_supports_attention_backend", False)) and kinds <= _KINDS and not sinks


def register() -> None:
    """Make the implementation known to transformers under ``NAME``. Harmless when repeated."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, documents_attention)
    AttentionMaskInterface.register(NAME, _no_mask)


@contextmanager
def attending_to_documents(model: Any) -> Iterator[None]:
    """Within the block the model expects ``document_lengths`` in its forward call."""
    register()
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Borders come from the lengths: no mask is built."""
    del args, kwargs


def documents_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    document_lengths: tuple[int, ...],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document.

    query: [1, heads, tokens, head_dim]; key, value: [1, kv_heads, tokens, head_dim]; returns
    [1, tokens, heads, head_dim]. document_lengths: tokens of each document, in order, adding up to
    the whole. Signature and shapes are those of transformers' attention interface.
    """
    del module, attention_mask, kwargs
    half = query.dtype in (torch.bfloat16, torch.float16)
    if query.is_cuda and half and not softcap and not dropout:
        out = _varlen(query, key, value, lengths=document_lengths, scaling=scaling, window=sliding_window)
    else:
        lengths = list(document_lengths)
        parts = zip(*(torch.split(states, lengths, 2) for states in (query, key, value)), strict=True)
        pieces = [
            _one(q, k, v, scaling=scaling, dropout=dropout, window=sliding_window, softcap=softcap)
            for q, k, v in parts
        ]
        out = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
    return out, None


def _one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float | None,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Attention of one document: [1, length, heads, head_dim]."""
    length = query.shape[2]
    mask = None
    if softcap or (window is not None and length > window):
        place = torch.arange(length, device=query.device)
        back = place[:, None] - place[None, :]
        mask = back >= 0
        if window is not None:
            mask &= back < window
    if softcap:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        scores = softcap * torch.tanh(scores / softcap)
        assert mask is not None
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = F.dropout(scores.float().softmax(-1).to(query.dtype), dropout)
        return (weights @ value).transpose(1, 2)
    out = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2)


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    lengths: tuple[int, ...],
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """All documents in one kernel: [1, tokens, heads, head_dim]."""
    from torch.nn.attention.varlen import varlen_attn

    # Since torch 2.13 fewer key heads than query heads must be asked for; before they were just taken.
    grouped: dict[str, Any] = {}
    if query.shape[1] != key.shape[1] and "enable_gqa" in inspect.signature(varlen_attn).parameters:
        grouped["enable_gqa"] = True
    ends = torch.tensor((0, *lengths), device=query.device).cumsum(0, dtype=torch.int32)
    longest = max(lengths)
    out = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        ends,
        ends,
        longest,
        longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        **grouped,
    )
    return out.unsqueeze(0)  # type: ignore[union-attr]
