"""Frozen weights in eight-bit floating point, with products on the matrix units of Hopper and newer cards.

A scale for each row of every operand (e4m3, largest value 448). The weight is held twice, once with its
rows and once with its columns in order, since the products of both passes want the summed dimension
innermost: as many bytes as 16-bit weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

NAMES = ("rows", "row_scales", "columns", "column_scales")
LARGEST = 448.0
_TINY = 1e-12


def quantise(weight: Tensor) -> tuple[Tensor, ...]:
    """The parts of a matrix [out, in]: [out, in] e4m3, [out, 1] fp32, [in, out] e4m3, [in, 1] fp32."""
    return (*_cast(weight), *_cast(weight.t().contiguous()))


def dequantised(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The matrix [out, in] that the forward product sees."""
    return (parts[0].float() * parts[1]).to(dtype)


def product(x: Tensor, parts: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    """``x W' + bias`` with x [tokens, in] cast row by row."""
    out = _scaled(x, parts[0], parts[1])
    return out if bias is None else out.add_(bias)


def product_back(grad: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """``grad W`` with grad [tokens, out] cast row by row."""
    return _scaled(grad, parts[2], parts[3])


def _scaled(x: Tensor, other: Tensor, scales: Tensor) -> Tensor:
    if not x.is_cuda:
        rows, row_scales = _cast(x)
        return ((rows.float() @ other.float().t()) * row_scales * scales.t()).to(x.dtype)
    rows, row_scales = _cast_on_gpu()(x)
    return torch._scaled_mm(rows, other.t(), row_scales, scales.t(), out_dtype=x.dtype, use_fast_accum=True)


def _cast(x: Tensor) -> tuple[Tensor, Tensor]:
    """x row by row in e4m3, and the scale of each row [rows, 1]."""
    scales = x.abs().amax(dim=1, keepdim=True).float().clamp_min(_TINY) / LARGEST
    return (x.float() / scales).to(torch.float8_e4m3fn), scales


@cache
def _cast_on_gpu() -> Any:
    """The cast as one kernel, whatever the number of rows."""
    return torch.compile(_cast, dynamic=True)
