"""The target's kernels, emitted on tensors without data.

On the ``meta`` device torch would pick its reference paths (whole score matrices, separate casts). Here
each attention is one function of transformers' own interface that makes and keeps what the target does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from luthier.checks.trace.fourbit import widening_temporaries
from luthier.checks.trace.packed import linear_temporaries
from luthier.checks.trace.recorder import Hidden
from luthier.sizing.reductions import column_sum_bytes

EFFICIENT = "luthier_traced_efficient"
FLASH = "luthier_traced_fused"
EAGER = "luthier_traced_eager"
aten = torch.ops.aten


def _flash_temporaries(args: tuple[Any, ...], _kwargs: dict[str, Any], _out: Any) -> int:
    """What the backward kernel takes for itself.

    An fp32 accumulator for the queries' gradient, a number for each head and token, and keys' and
    values' gradients for every query head before they are summed.
    """
    query, key = args[1], args[2]
    accumulator = 4 * query.numel() + 4 * query.numel() // query.shape[-1]
    wide = 0 if query.shape[-2] == key.shape[-2] else 2 * query.numel() * query.element_size()
    return int(accumulator + wide)


def _sum_temporaries(args: tuple[Any, ...], _kwargs: dict[str, Any], _out: Any) -> int:
    """Parts of a 16-bit matrix's sum over its rows, as a bias's gradient is."""
    matrix, dims = args[0], args[1] if len(args) > 1 else None
    if matrix.ndim != 2 or dims is None or list(dims) != [0] or matrix.element_size() != 2:
        return 0
    return column_sum_bytes(*matrix.shape)


HIDDEN: dict[str, Hidden] = {
    # softmax_backward_cuda_out multiplies gradient and output into a temporary of its own.
    "aten::_softmax_backward_data": lambda args, _kwargs, _out: args[0].numel() * args[0].element_size(),
    "aten::sum": _sum_temporaries,
    "luthier_traced::flash_backward": _flash_temporaries,
    "luthier_traced::widen": widening_temporaries,
    "luthier::linear": linear_temporaries,
    "luthier::linear_backward": linear_temporaries,
}


@cache
def flash_operation() -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Flash attention on [tokens, heads, width], keys and values with fewer heads, as one operation.

    Keeps inputs, output and one fp32 number a head and token. An operation of its own, so that a
    compiled graph neither looks into it nor computes it twice.
    """

    def forward(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        del key, value
        return torch.empty_like(query), query.new_empty(query.shape[:-1], dtype=torch.float32)

    def backward(  # noqa: PLR0917 (an operation's arguments)
        grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, sums: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        del grad, out, sums
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)

    flash = torch.library.custom_op("luthier_traced::flash", forward, mutates_args=())
    flash_backward = torch.library.custom_op("luthier_traced::flash_backward", backward, mutates_args=())
    flash.register_fake(forward)
    flash_backward.register_fake(backward)

    def keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs, *output)

    def again(ctx: Any, grad: Tensor, _sums: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = flash_backward(grad, *ctx.saved_tensors)
        return found

    flash.register_autograd(again, setup_context=keep)
    return flash


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
    """Memory-efficient attention with keys and values repeated for every query head.

    mask: [rows, 1, tokens, tokens] of booleans, which each layer turns into numbers to add, or None.
    """
    del module
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=-3), value.repeat_interleave(groups, dim=-3)
    added = None
    if mask is not None:
        added = query.new_empty(mask.shape).expand(-1, query.shape[1], -1, -1)
    out = aten._scaled_dot_product_efficient_attention(
        query, key, value, added, True, 0.0, mask is None, scale=scaling
    )[0]
    return out.transpose(1, 2).contiguous(), None


def flash_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **_: Any
) -> tuple[Tensor, None]:
    """Flash attention that knows grouped queries, in the model's layout."""
    del module, mask
    rows, heads, tokens, width = query.shape
    query, key = query.to(value.dtype), key.to(value.dtype)  # autocast narrows what rotation widened
    flat = [states.transpose(1, 2).reshape(rows * tokens, -1, width) for states in (query, key, value)]
    out, _sums = flash_operation()(*flat)
    return out.view(rows, tokens, heads, width), None


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

    flash_operation()
    for name, function in ((EFFICIENT, efficient_attention), (FLASH, flash_attention)):
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, _no_mask)
    AttentionInterface.register(EAGER, eager_attention)
    AttentionMaskInterface.register(EAGER, eager_mask)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    del args, kwargs
