"""The target's kernels, emitted on tensors without data.

On the ``meta`` device torch would pick its reference paths (whole score matrices, separate casts). Here
each attention is one function of transformers' own interface that makes and keeps what the target does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

EFFICIENT = "luthier_traced_efficient"
FLASH = "luthier_traced_fused"
EAGER = "luthier_traced_eager"
aten = torch.ops.aten

HIDDEN = {
    # softmax_backward_cuda_out multiplies gradient and output into a temporary of its own.
    "aten::_softmax_backward_data": lambda args, _kwargs, _out: args[0].numel() * args[0].element_size(),
}


def efficient_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    *,
    scaling: float = 1.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Memory-efficient attention with keys and values repeated for every query head."""
    del module, mask
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=-3), value.repeat_interleave(groups, dim=-3)
    out = aten._scaled_dot_product_efficient_attention(
        query, key, value, None, True, 0.0, True, scale=scaling
    )[0]
    return out.transpose(1, 2).contiguous(), None


class _Flash(torch.autograd.Function):
    """Flash attention on [rows, heads, tokens, width], keys and values with fewer heads.

    Keeps inputs, output and one fp32 number a head and token. The backward pass has an fp32
    accumulator for the queries' gradient, and keys' and values' gradients for every query head before
    they are summed.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query.transpose(1, 2)).contiguous()
        sums = query.new_empty(query.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        del grads
        query, key, value, _, sums = ctx.saved_tensors
        delta = torch.empty_like(sums)
        accumulator = query.new_empty(query.shape, dtype=torch.float32)
        out = torch.empty_like(query)
        if query.shape[1] == key.shape[1]:
            return out, torch.empty_like(key), torch.empty_like(value)
        wide_key, wide_value = torch.empty_like(query), torch.empty_like(query)
        found = out, torch.empty_like(key), torch.empty_like(value)
        del delta, accumulator, wide_key, wide_value
        return found


def flash_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **_: Any
) -> tuple[Tensor, None]:
    """Flash attention that knows grouped queries, in the model's layout."""
    del module, mask
    return _Flash.apply(query, key, value), None  # type: ignore[no-untyped-call]


def eager_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    *,
    scaling: float = 1.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' eager attention, with CUDA's softmax.

    From fp16 to fp32 that is one kernel; from other types a cast and a softmax.
    """
    del module
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = _repeated(key, groups), _repeated(value, groups)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if mask is not None:
        scores = scores + mask
    if query.dtype == torch.float16:
        weights = aten._softmax(scores, -1, True)
    else:
        weights = torch.softmax(scores, -1, torch.float32)
    out = torch.matmul(weights.to(query.dtype), value)
    return out.transpose(1, 2).contiguous(), None


def _repeated(states: Tensor, groups: int) -> Tensor:
    rows, heads, tokens, width = states.shape
    wide = states[:, :, None].expand(rows, heads, groups, tokens, width)
    return wide.reshape(rows, heads * groups, tokens, width)


def register() -> None:
    """Make the traced attentions known to transformers, in this process."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    for name, function in ((EFFICIENT, efficient_attention), (FLASH, flash_attention)):
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, _no_mask)
    AttentionInterface.register(EAGER, eager_attention)
    AttentionMaskInterface.register(EAGER, eager_mask)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    del args, kwargs
