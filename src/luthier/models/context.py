"""Attention over a row of documents of which every process holds a run of tokens.

Before the attention the processes exchange tokens for heads, so that each has some heads of the whole row,
and afterwards back (Jacobs et al. 2023, DeepSpeed-Ulysses, arXiv 2309.14509). What runs in between is the
attention of one process: documents, sliding windows, soft-capping and kernels are as there, and all
processes have the same work. Heads that do not divide are filled up with heads of zeros.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from luthier.models.attention import attending, documents_attention
from luthier.models.exchange import Group, swapped

NAME = "luthier_context"


def attending_together(model: Any) -> AbstractContextManager[None]:
    """Within the block the model expects its own run of tokens and the arguments of the whole row.

    These are `models.attention.document_arguments` of the row, and the group as ``context_group``.
    """
    return attending(model, NAME, context_attention)


def context_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    context_group: Group,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`documents_attention` where each process of the group has as many tokens of the row, one after another.

    query: [1, heads, own tokens, head_dim]; key, value: [1, kv_heads, own tokens, head_dim]; returns
    [1, own tokens, heads, head_dim].
    """
    count, heads = dist.get_world_size(context_group), query.shape[1]
    parts = divisible(query[0], key[0], value[0], count)
    each = [part.shape[0] // count for part in parts]
    # One exchange for the three: [process, heads of all three, own tokens, head_dim].
    wide = max(part.shape[-1] for part in parts)
    rows = [
        F.pad(part, (0, wide - part.shape[-1])).view(count, many, -1, wide)
        for part, many in zip(parts, each, strict=True)
    ]
    whole = swapped(torch.cat(rows, dim=1), context_group)
    whole = whole.transpose(0, 1).flatten(1, 2)
    q, k, v = (
        states[..., : part.shape[-1]].unsqueeze(0)
        for states, part in zip(torch.split(whole, each), parts, strict=True)
    )
    out, _ = documents_attention(module, q, k, v, attention_mask, **kwargs)
    # [1, tokens, own heads, head_dim] to [process, own tokens of it, own heads, head_dim] and back.
    back = swapped(out[0].view(count, -1, *out.shape[2:]), context_group)
    return back.permute(1, 0, 2, 3).flatten(1, 2)[:, :heads].unsqueeze(0), None


def divisible(query: Tensor, key: Tensor, value: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Heads that divide by count and stay together with their keys: [heads, tokens, head_dim] each.

    Key and value heads are repeated as little as that asks for; where query heads do not divide, heads of
    zeros follow the last one, whose results are dropped.
    """
    heads, groups = query.shape[0], key.shape[0]
    if groups % count == 0:
        return query, key, value
    if heads % count == 0 and count % groups == 0:
        more = count // groups
        return query, key.repeat_interleave(more, 0), value.repeat_interleave(more, 0)
    missing = (0, 0, 0, 0, 0, -heads % count)
    more = heads // groups
    return (
        F.pad(query, missing),
        F.pad(key.repeat_interleave(more, 0), missing),
        F.pad(value.repeat_interleave(more, 0), missing),
    )
