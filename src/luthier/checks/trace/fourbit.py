"""Linear layers over NF4 weights as bitsandbytes runs them, on tensors without data and without its code.

The product widens the weight tile by tile, its gradient the whole weight, and nothing of it is kept
(bitsandbytes 0.50: ``Linear4bit``, ``MatMul4Bit``).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 64
"""Weights that share a scale."""
SCALES = 256
"""Scales that share one of their own."""


@cache
def operations() -> tuple[Any, Any]:
    """The product with packed weights [rows, columns], and the operation that widens them."""

    def widen(packed: Tensor, scales: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        del scales
        return packed.new_empty((rows, columns), dtype=dtype)

    def product(states: Tensor, packed: Tensor, scales: Tensor, rows: int, columns: int) -> Tensor:
        del packed, scales, columns
        return states.new_empty((*states.shape[:-1], rows))

    found = []
    for name, function in (("product", product), ("widen", widen)):
        operation = torch.library.custom_op(f"luthier_traced::{name}", function, mutates_args=())
        operation.register_fake(function)
        found.append(operation)
    return found[0], found[1]


def widening_temporaries(args: tuple[Any, ...], _kwargs: dict[str, Any], _out: Any) -> int:
    """Scales that are one byte each are widened first."""
    scales: Tensor = args[1]
    return 4 * scales.numel() if scales.dtype == torch.uint8 else 0


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 (autograd passes by place)
        ctx: Any, states: Tensor, packed: Tensor, scales: Tensor, rows: int, columns: int, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(packed, scales)
        ctx.sides, ctx.half = (rows, columns), states.dtype
        out: Tensor = operations()[0](states, packed, scales, rows, columns)
        return out if bias is None else out.add_(bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        packed, scales = ctx.saved_tensors
        grad = torch.matmul(grads[0], operations()[1](packed, scales, *ctx.sides, ctx.half))
        return grad, None, None, None, None, None


class FourBit(nn.Linear):
    """A frozen linear layer in NF4, for PEFT an ordinary one. double: scales of one byte each.

    weight: the packed numbers. dtype: that of its products. cloned: whether the result is copied, as
    PEFT does with what bitsandbytes' layers return.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, *, double: bool, cloned: bool) -> None:
        numbers = linear.weight.numel()
        blocks = -(-numbers // BLOCK)
        with torch.device("meta"):
            super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
            self.weight = nn.Parameter(
                torch.empty(((numbers + 1) // 2, 1), dtype=torch.uint8), requires_grad=False
            )
            if linear.bias is not None:
                self.bias = nn.Parameter(torch.empty_like(linear.bias, dtype=dtype), requires_grad=False)
            # Buffers, so that a compiled graph takes them as inputs; in the order in which bitsandbytes
            # makes them, on which it depends what the allocator splits.
            kept = {"scales": torch.empty(blocks, dtype=torch.uint8 if double else torch.float32)}
            kept["code"] = torch.empty(16)
            if double:
                kept["offset"] = torch.empty(())
                kept["scales_of_scales"] = torch.empty(-(-blocks // SCALES))
                kept["code_of_scales"] = torch.empty(SCALES)
        self.dtype, self.kept, self.cloned = dtype, tuple(kept), cloned
        for name, part in kept.items():
            self.register_buffer(name, part, persistent=False)

    def parts(self) -> Iterator[Tensor]:
        """What the layer holds beside its bias."""
        yield self.weight.data
        yield from (getattr(self, name) for name in self.kept)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (nn.Linear's name)
        """input: [..., in] to [..., out], in its own type."""
        bias = None if self.bias is None else self.bias.to(self.dtype)
        narrow = input.to(self.dtype)
        out: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
            narrow, self.weight, self.scales, self.out_features, self.in_features, bias
        )
        out = out.to(input.dtype)
        return out.clone() if self.cloned else out
