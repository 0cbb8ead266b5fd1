"""Products of trained linear layers in eight-bit floating point, on matrix units of Hopper and newer cards.

One scale for each operand, found anew at every product (dynamic, tensorwise): weights and inputs in e4m3,
gradients in e5m2, which reaches further. All three products of a layer are in eight bits and summed in 32;
weights, gradients and the optimiser's states keep their own types.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import Unsupported

NARROW, FAR = torch.float8_e4m3fn, torch.float8_e5m2
SIDE = 16
"""Numbers that matrix units take at a time: both sides of a weight must be a multiple of it."""
_TINY = 1e-12


class Float8Linear(nn.Linear):
    """A linear layer whose products are in eight bits while it trains, and in its own type else."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in] to [..., out]."""
        if not self.training:
            return super().forward(x)
        out: Tensor = _Products.apply(x.reshape(-1, x.shape[-1]), self.weight)  # type: ignore[no-untyped-call]
        out = out.view(*x.shape[:-1], out.shape[-1])
        return out if self.bias is None else out + self.bias


@contextmanager
def float8_products(model: nn.Module, layers: Sequence[nn.Module]) -> Iterator[int]:
    """Within the block the trained linear layers of ``layers`` compute in eight bits; how many these are.

    Frozen ones stay as they are, and those whose sides are no multiple of 16; so do embeddings and head,
    which are no part of the layers. No weight is touched. Errors: Unsupported where no layer is left.
    """
    found = [
        part
        for layer in layers
        for part in layer.modules()
        if type(part) is nn.Linear
        and part.weight.requires_grad
        and not (part.in_features % SIDE or part.out_features % SIDE)
    ]
    if not found:
        raise Unsupported(
            f"method.products: {type(model).__name__} has no linear layer for eight-bit products (trained, "
            f"with both sides a multiple of {SIDE})",
            hint="leave method.products out",
        )
    for part in found:
        part.__class__ = Float8Linear  # the same weights under the same names: nothing else notices
    try:
        yield len(found)
    finally:
        for part in found:
            part.__class__ = nn.Linear


class _Products(torch.autograd.Function):
    """``x W'`` and its gradients. x: [tokens, in], weight: [out, in], of one type."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        narrow, scale = _cast(x, NARROW)
        weights, weight_scale = _cast(weight, NARROW)
        # The weight is there anyway and is cast again; of the input the eight bits are enough.
        ctx.save_for_backward(narrow, scale, weight, weight_scale)
        return _product(narrow, scale, weights, weight_scale, x.dtype, fast=True)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        narrow, scale, weight, weight_scale = ctx.saved_tensors
        grad, grad_scale = _cast(grads[0], FAR)
        weights = _narrowed(weight, weight_scale, NARROW)
        back = by_weight = None
        # Sums of gradients are not cut short: what the units' fast mode drops adds up over steps.
        if ctx.needs_input_grad[0]:
            back = _product(
                grad, grad_scale, weights.t().contiguous(), weight_scale, grads[0].dtype, fast=False
            )
        if ctx.needs_input_grad[1]:
            # Here the tokens are summed over, which the units take in sixteens as well.
            one, other = _filled(grad.t()), _filled(narrow.t())
            by_weight = _product(one, grad_scale, other, scale, weight.dtype, fast=False)
        return back, by_weight


def _cast(x: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """x in eight bits and its scale, a number in fp32 by which they are multiplied."""
    scale = x.detach().abs().amax().float().clamp_min(_TINY) / torch.finfo(kind).max
    return _narrowed(x, scale, kind), scale


def _narrowed(x: Tensor, scale: Tensor, kind: torch.dtype) -> Tensor:
    # Within the type's range: a division that rounds up would be not a number there.
    most = torch.finfo(kind).max
    return (x.float() / scale).clamp(-most, most).to(kind)


def _filled(x: Tensor) -> Tensor:
    """x [rows, tokens] in order, with zeros after the last token up to a multiple of 16."""
    missing = -x.shape[1] % SIDE
    if not missing:
        return x.contiguous()
    return nn.functional.pad(x.view(torch.uint8), (0, missing)).view(x.dtype)


def _product(
    x: Tensor, scale: Tensor, other: Tensor, other_scale: Tensor, dtype: torch.dtype, *, fast: bool
) -> Tensor:
    """``x other'`` for x [rows, inner] and other [columns, inner], both in order."""
    if not x.is_cuda:
        return ((x.float() @ other.float().t()) * (scale * other_scale)).to(dtype)
    return torch._scaled_mm(x, other.t(), scale, other_scale, out_dtype=dtype, use_fast_accum=fast)
