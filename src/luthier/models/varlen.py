"""One attention kernel for documents of different lengths laid end to end, on CUDA in half precision.

torch's own (FlashAttention-2 inside torch), or FlashAttention-4 where it is installed and the card is a
Hopper or newer: about twice as fast there.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

Kernel = Literal["torch", "flash4"]

# From here on fewer key heads than query heads must be asked for; before, they were just taken.
_GROUPED = torch.__version__ >= "2.13"
_FLASH4_WIDTHS = (64, 96, 128)


def kernel_for(device: torch.device, head_dim: int | None) -> Kernel:
    """The fastest kernel that there is for the device."""
    if not _takes_flash4(device, head_dim):
        return "torch"
    try:
        found = find_spec("flash_attn.cute") is not None and find_spec("cutlass") is not None
    except ImportError:
        found = False
    return "flash4" if found else "torch"


def faster_kernel(device: torch.device, head_dim: int | None) -> str | None:
    """A faster kernel that the device could have and has not, with its command and what that costs."""
    if kernel_for(device, head_dim) == "flash4" or not _takes_flash4(device, head_dim):
        return None
    return (
        "attention runs in torch's own kernel: flash-attn-4 with nvidia-cutlass-dsl is about twice as fast "
        "on this card (pip install flash-attn-4 nvidia-cutlass-dsl)"
    )


def _takes_flash4(device: torch.device, head_dim: int | None) -> bool:
    if device.type != "cuda" or torch.version.hip is not None or head_dim not in _FLASH4_WIDTHS:
        return False
    return torch.cuda.get_device_capability(device)[0] in (9, 10)


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Tensor,
    longest: int,
    *,
    scale: float | None = None,
    window: int | None = None,
    kernel: Kernel = "torch",
) -> Tensor:
    """Causal attention within each document: [tokens, heads, head_dim].

    query: [tokens, heads, head_dim]; key, value: [tokens, kv_heads, head_dim]; ends: [documents + 1]
    int32, 0 first; longest: no document is longer; window: how many places each sees, itself included.
    """
    if kernel == "flash4":
        flash: Tensor = _flash4(query, key, value, ends, longest, scale, window)[0]
        return flash
    # Loads torch's compiler, which takes a second that a run on a CPU does not need.
    from torch.nn.attention.varlen import varlen_attn

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


def _window(window: int | None) -> dict[str, Any]:
    if window is None:
        return {"causal": True}
    return {"causal": False, "window_size_left": window - 1, "window_size_right": 0}


def _forward(  # noqa: PLR0917 (signature of the operation)
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Tensor,
    longest: int,
    scale: float | None,
    window: int | None,
) -> tuple[Tensor, Tensor]:
    from flash_attn.cute import interface

    out, weights, *_ = interface._flash_attn_fwd(
        query,
        key,
        value,
        cu_seqlens_q=ends,
        cu_seqlens_k=ends,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        softmax_scale=scale,
        return_lse=True,
        **_window(window),
    )
    return out, weights


def _forward_shapes(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    tokens, heads, width = query.shape
    return query.new_empty(tokens, heads, width), query.new_empty(heads, tokens, dtype=torch.float32)


def _backward(  # noqa: PLR0917
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    weights: Tensor,
    ends: Tensor,
    longest: int,
    scale: float | None,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    from flash_attn.cute import interface

    grads = interface._flash_attn_bwd(
        query,
        key,
        value,
        out,
        grad,
        weights,
        cu_seqlens_q=ends,
        cu_seqlens_k=ends,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        softmax_scale=scale,
        **_window(window),
    )
    return grads[0], grads[1], grads[2]


def _backward_shapes(grad: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    del grad
    query, key, value = inputs[:3]
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _known_to_torch() -> Callable[..., Any]:
    """FlashAttention-4 as one operation, with its shapes and its gradient."""
    library = torch.library
    forward = library.custom_op("luthier::varlen_attention", _forward, mutates_args=())
    forward.register_fake(_forward_shapes)
    backward = library.custom_op("luthier::varlen_attention_backward", _backward, mutates_args=())
    backward.register_fake(_backward_shapes)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        query, key, value, ends, ctx.longest, ctx.scale, ctx.window = inputs
        ctx.save_for_backward(query, key, value, *output, ends)

    def back(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
        grads = backward(grad.contiguous(), *ctx.saved_tensors, ctx.longest, ctx.scale, ctx.window)
        return (*grads, None, None, None, None)

    forward.register_autograd(back, setup_context=keep)
    return forward


# Once for the process: the compiler looks it up by its name.
_flash4 = _known_to_torch()
