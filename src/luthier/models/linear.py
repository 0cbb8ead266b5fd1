"""A frozen linear layer with a low-rank adapter beside it, as one operation for autograd and the compiler.

Nothing is kept for the backward pass but ``x`` and ``x a'``: neither the gradient of the frozen weight
nor a dequantised copy of it is ever wanted. The adapter's product is written first and the large product
adds to it, so the adapter costs no pass of its own over the output, nor over the gradient of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.models import float8, nf4

DENSE, NF4, FLOAT8 = "dense", "nf4", "float8"
NAME = "luthier::linear"


def adapted_linear(  # noqa: PLR0917 (as the operation is called)
    x: Tensor, base: Sequence[Tensor], kind: str, bias: Tensor | None, a: Tensor | None, b: Tensor | None
) -> Tensor:
    """``x W' + bias + (x a') b'``: [..., out].

    x: [..., in]; base: the tensors that hold W [out, in] in the way that kind names (`dense_base` and the
    like); a: [rank, in] with the adapter's scale in it; b: [out, rank]; both of x's dtype, or None.
    """
    flat = x.reshape(-1, x.shape[-1])
    # Outside of the operation: there the compiler joins it to what made x, and layers of one input share it.
    narrow = list(float8.cast(flat.detach())) if kind == FLOAT8 else []
    out, _ = _linear(flat, list(base), kind, bias, a, b, narrow)
    return out.view(*x.shape[:-1], out.shape[-1])  # type: ignore[no-any-return]


def weight_of(base: Sequence[Tensor], kind: str, width: int, dtype: torch.dtype) -> Tensor:
    """W as a plain matrix [out, width] of that dtype; the tensor itself where it is one."""
    if kind == NF4:
        return nf4.dequantised(base, width, dtype)
    if kind == FLOAT8:
        return float8.dequantised(base, dtype)
    return base[0].to(dtype)


def _rows(base: Sequence[Tensor], kind: str, width: int) -> int:
    return base[0].numel() * base[0].element_size() * 2 // width if kind == NF4 else base[0].shape[0]


def _forward(  # noqa: PLR0917 (signature of the operation)
    x: Tensor,
    base: list[Tensor],
    kind: str,
    bias: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    narrow: list[Tensor],
) -> tuple[Tensor, Tensor]:
    low = x.new_empty(x.shape[0], 0) if a is None else x @ a.t()
    if kind == FLOAT8:
        out = float8.product(narrow, base, bias, x.dtype)
        if b is not None:
            out.addmm_(low, b.t())
        return out, low
    weight = weight_of(base, kind, x.shape[1], x.dtype)
    if b is None:
        return torch.nn.functional.linear(x, weight, bias), low
    out = low @ b.t() if bias is None else torch.addmm(bias, low, b.t())
    return out.addmm_(x, weight.t()), low


def _forward_shapes(  # noqa: PLR0917
    x: Tensor,
    base: list[Tensor],
    kind: str,
    bias: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    narrow: list[Tensor],
) -> tuple[Tensor, Tensor]:
    del bias, b, narrow
    rank = 0 if a is None else a.shape[0]
    return x.new_empty(x.shape[0], _rows(base, kind, x.shape[1])), x.new_empty(x.shape[0], rank)


def _backward_input(  # noqa: PLR0917
    grad: Tensor,
    base: list[Tensor],
    kind: str,
    width: int,
    a: Tensor | None,
    b: Tensor | None,
    narrow: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of ``x a'``."""
    low = grad.new_empty(grad.shape[0], 0) if b is None else grad @ b
    if kind == FLOAT8:
        out = float8.product_back(narrow, base, grad.dtype)
        if a is not None:
            out.addmm_(low, a)
        return out, low
    weight = weight_of(base, kind, width, grad.dtype)
    if a is None:
        return grad @ weight, low
    return (low @ a).addmm_(grad, weight), low


def _backward_input_shapes(  # noqa: PLR0917
    grad: Tensor,
    base: list[Tensor],
    kind: str,
    width: int,
    a: Tensor | None,
    b: Tensor | None,
    narrow: list[Tensor],
) -> tuple[Tensor, Tensor]:
    del base, kind, b, narrow
    rank = 0 if a is None else a.shape[0]
    return grad.new_empty(grad.shape[0], width), grad.new_empty(grad.shape[0], rank)


def _known_to_torch() -> Callable[..., Any]:
    """The operation with its shapes and its gradient."""
    library = torch.library
    forward = library.custom_op(NAME, _forward, mutates_args=())
    forward.register_fake(_forward_shapes)
    backward = library.custom_op(NAME + "_backward", _backward_input, mutates_args=())
    backward.register_fake(_backward_input_shapes)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, base, ctx.kind, _, a, b, narrow = inputs
        ctx.narrow = len(narrow)
        ctx.adapter, ctx.width = a is not None, x.shape[1]
        kept = (x, output[1], a, b) if ctx.adapter else ()
        ctx.save_for_backward(*base, *kept)

    def back(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
        saved = list(ctx.saved_tensors)
        grad = grad.contiguous()
        none = [None] * ctx.narrow
        narrow = list(float8.cast(grad)) if ctx.kind == FLOAT8 else []
        if not ctx.adapter:
            out, _ = backward(grad, saved, ctx.kind, ctx.width, None, None, narrow)
            return out, [None] * len(saved), None, None, None, None, none
        *base, x, low, a, b = saved
        if ctx.needs_input_grad[0]:
            grad_x, grad_low = backward(grad, base, ctx.kind, ctx.width, a, b, narrow)
        else:
            grad_x, grad_low = None, grad @ b
        return grad_x, [None] * len(base), None, None, grad_low.t() @ x, grad.t() @ low, none

    forward.register_autograd(back, setup_context=keep)
    return forward


# Once for the process: the compiler looks it up by its name.
_linear = _known_to_torch()
