"""Noise on embeddings while training (NEFTune: Jain et al. 2023, arXiv 2310.05914)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def noisy(model: Any, alpha: float) -> Iterator[None]:
    """Within the block a model in training mode gets uniform noise on its embeddings where gradients flow.

    Each number is drawn within alpha / sqrt(L d): L the tokens of its own document, d the width. For one
    document a row this is transformers' formula, whose L is the row. alpha 0 changes nothing. The draws come
    from torch's generator of the device, so that a run resumes exactly.
    """
    if not alpha:
        yield
        return
    lengths: list[Tensor | None] = [None]

    def look(_module: Any, _args: Any, given: dict[str, Any]) -> None:
        lengths[0] = lengths_of(given.get("position_ids"), given.get("attention_mask"))

    def add(module: Any, _args: Any, out: Tensor) -> Tensor:
        if not module.training or not torch.is_grad_enabled():
            return out
        long = lengths[0] if lengths[0] is not None else out.new_full(out.shape[:2], out.shape[1])
        reach = alpha / torch.sqrt(long.unsqueeze(-1).float() * out.shape[-1])
        return out + torch.zeros_like(out).uniform_(-1, 1) * reach.to(out.dtype)

    base = model.base_model.register_forward_pre_hook(look, with_kwargs=True)
    embeddings = model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        base.remove()
        embeddings.remove()


def lengths_of(positions: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Tokens of the document that each token is in: [rows, tokens]; None where nothing says so.

    mask: [rows, tokens] where each row is one document. positions: [rows, tokens], from 0 in each document.
    """
    if mask is not None and mask.ndim == 2:
        return mask.sum(1, keepdim=True).expand(mask.shape)
    if positions is None or positions.ndim != 2:
        return None
    flat = positions.reshape(-1)
    starts = (flat == 0).nonzero().squeeze(1)
    ends = torch.cat((starts[1:], starts.new_tensor([flat.numel()])))
    return torch.repeat_interleave(ends - starts, ends - starts).view_as(positions)
