"""Attention over documents laid end to end in one row, never across their borders.

A batch of rows of different lengths, or of packed rows, is flattened to ``[1, tokens]`` without any
padding; each document then attends to itself alone. On a CPU (and in fp32 on a GPU) that is one
causal SDPA call a document; on CUDA in half precision it is a variable-length kernel: torch's own, or
that of FlashAttention-4 where it is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from luthier.models.varlen import Kernel, faster_kernel, kernel_for, varlen_attention

NAME = "luthier_documents"
_KINDS = frozenset({"full_attention", "sliding_attention"})
_WIDEST_HEAD = 256
_HEAD_STEP = 8


def supports_documents(model: Any) -> bool:
    """Whether the model's attention can be exchanged and has no state that crosses tokens otherwise.

    True for families that go through transformers' attention interface with full or sliding layers
    only. Others (linear attention, recurrent layers, learned sinks) are padded instead.
    """
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    sinks = any(hasattr(module, "sinks") for module in model.modules())
    return bool(getattr(model, "_supports_attention_backend", False)) and kinds <= _KINDS and not sinks


def why_not_varlen(model: Any) -> str | None:
    """Why one kernel cannot take all documents at once on CUDA, in words; None where it can."""
    config, width = model.config, _head_width(model.config)
    if getattr(config, "attn_logit_softcapping", None):
        return "its attention scores are soft-capped"
    if getattr(config, "attention_dropout", 0.0):
        return "it drops attention weights in training"
    if width is None or width % _HEAD_STEP or width > _WIDEST_HEAD:
        return f"its heads are {width} wide"
    return None


def _head_width(config: Any) -> int | None:
    heads = getattr(config, "num_attention_heads", None)
    width: int | None = getattr(config, "head_dim", None)
    return width or (config.hidden_size // heads if heads else None)


def varlen_kernel(model: Any) -> Kernel:
    """The fastest kernel that takes all documents at once, where one can (`why_not_varlen`)."""
    return kernel_for(next(model.parameters()).device, _head_width(model.config))


def lacking(model: Any) -> list[str]:
    """What keeps attention on CUDA in half precision from its fastest kernel here, with what it costs."""
    weight = next(model.parameters())
    if not weight.is_cuda or model.dtype not in (torch.bfloat16, torch.float16):
        return []
    if not supports_documents(model):
        return ["rows are padded to the longest, for this family's layers carry state from token to token"]
    if (why := why_not_varlen(model)) is not None:
        return [f"attention runs document by document, for {why}: exact, and slower the more there are"]
    faster = faster_kernel(weight.device, _head_width(model.config))
    return [] if faster is None else [faster]


def register(name: str, attention: Callable[..., tuple[Tensor, None]]) -> None:
    """Make an implementation without masks known to transformers under a name. Harmless when repeated."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, _no_mask)


def attending_to_documents(model: Any) -> AbstractContextManager[None]:
    """Within the block the model expects ``document_arguments`` in its forward call."""
    return attending(model, NAME, documents_attention)


@contextmanager
def attending(model: Any, name: str, attention: Callable[..., tuple[Tensor, None]]) -> Iterator[None]:
    """Within the block the model attends by that implementation, known to transformers under the name."""
    register(name, attention)
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Borders come from the lengths: no mask is built."""
    del args, kwargs


def document_arguments(
    lengths: tuple[int, ...],
    *,
    device: torch.device,
    tensors: bool,
    longest: int | None = None,
    kernel: Kernel = "torch",
) -> dict[str, Any]:
    """What tells the attention where documents end, as keyword arguments of the model.

    tensors: the ends as an int32 tensor [documents + 1], which one compiled graph takes whatever the
    lengths are (CUDA in half precision, and compiled layers); else the lengths as they are. longest: a
    bound on any document's length that stays the same over a run, for the same reason. kernel: which one
    takes them on CUDA (`varlen_kernel`).
    """
    if not tensors:
        return {"document_lengths": lengths}
    ends = torch.tensor((0, *lengths)).cumsum(0, dtype=torch.int32)
    return ends_arguments(ends.to(device, non_blocking=True), max(longest or 0, *lengths), kernel)


def ends_arguments(ends: Tensor, longest: int, kernel: Kernel) -> dict[str, Any]:
    """`document_arguments` from the ends themselves: [documents + 1] int32 on the device, 0 first.

    Empty documents may follow the last one. longest: no document is longer.
    """
    return {"document_ends": ends, "document_longest": longest, "document_kernel": kernel}


def documents_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    document_lengths: tuple[int, ...] | None = None,
    document_ends: Tensor | None = None,
    document_longest: int = 0,
    document_kernel: Kernel = "torch",
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document.

    query: [1, heads, tokens, head_dim]; key, value: [1, kv_heads, tokens, head_dim]; returns
    [1, tokens, heads, head_dim]. The other arguments are those of `document_arguments`. Signature and
    shapes are those of transformers' attention interface.
    """
    del module, attention_mask, kwargs
    if document_ends is not None:
        half = query.dtype in (torch.bfloat16, torch.float16)
        if query.is_cuda and half and not softcap and not dropout:
            out = varlen_attention(
                query[0].transpose(0, 1),
                key[0].transpose(0, 1),
                value[0].transpose(0, 1),
                document_ends,
                document_longest,
                scale=scaling,
                window=sliding_window,
                kernel=document_kernel,
            )
            return out.unsqueeze(0), None
        mask = _mask(document_ends, query.shape[2], sliding_window)
        return _masked(query, key, value, mask, scaling=scaling, dropout=dropout, softcap=softcap), None
    assert document_lengths is not None
    lengths = list(document_lengths)
    parts = zip(*(torch.split(states, lengths, 2) for states in (query, key, value)), strict=True)
    pieces = [
        _one(q, k, v, scaling=scaling, dropout=dropout, window=sliding_window, softcap=softcap)
        for q, k, v in parts
    ]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1), None


def _mask(ends: Tensor, tokens: int, window: int | None) -> Tensor:
    """Which places each place sees, document by document: [tokens, tokens], true where it sees."""
    place = torch.arange(tokens, device=ends.device)
    document = torch.searchsorted(ends, place, right=True)
    back = place[:, None] - place[None, :]
    mask = (back >= 0) & (document[:, None] == document[None, :])
    return mask if window is None else mask & (back < window)


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
    return _masked(query, key, value, mask, scaling=scaling, dropout=dropout, softcap=softcap)


def _masked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
) -> Tensor:
    """Attention under a mask [tokens, tokens], or causal without one: [1, tokens, heads, head_dim]."""
    if softcap:
        assert mask is not None
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        scores = softcap * torch.tanh(scores / softcap)
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
