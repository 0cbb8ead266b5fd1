"""Our packed linear layers (NF4, eight-bit floating point) on tensors without data."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from luthier.models.nf4 import BLOCK, SCALE_BLOCK
from luthier.models.packed import PackedLinear


def pack_without_data(
    model: nn.Module, kind: Literal["nf4", "float8"], *, head: Tensor, double: bool
) -> None:
    """Replace every linear layer but the output head by a packed one with parts of the right sizes."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and child.weight is not head:
                parts = _nf4_parts(child.weight, double) if kind == "nf4" else _float8_parts(child.weight)
                layer = PackedLinear(
                    child.in_features, child.out_features, parts, kind, child.weight.dtype, child.bias
                )
                setattr(module, name, layer)


def _nf4_parts(weight: Tensor, double: bool) -> list[Tensor]:
    numbers = weight.numel()
    blocks = -(-numbers // BLOCK)
    with torch.device("meta"):
        packed = torch.empty(((numbers + 1) // 2, 1), dtype=torch.uint8)
        if not double:
            return [packed, torch.empty(blocks), torch.empty(16)]
        scales = torch.empty(blocks, dtype=torch.uint8)
        of_scales = torch.empty(-(-blocks // SCALE_BLOCK))
        return [packed, scales, torch.empty(16), of_scales, torch.empty(SCALE_BLOCK), torch.empty(1)]


def _float8_parts(weight: Tensor) -> list[Tensor]:
    from luthier.models import float8

    return list(float8.quantise(weight.detach()))


def linear_temporaries(args: tuple[Any, ...], _kwargs: dict[str, Any], _out: Any) -> int:
    """What our linear operation takes for itself: the widened weight, or the input in eight bits."""
    states, base, kind = args[0], args[1], args[2]
    if kind == "nf4":
        return int(2 * base[0].numel() * states.element_size() + 4 * base[1].numel())
    return int(states.numel()) if kind == "float8" else 0
