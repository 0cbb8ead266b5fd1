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
from torch._guards import detect_fake_mode

NAMES = ("rows", "row_scales", "columns", "column_scales")
LARGEST = 448.0
_TINY = 1e-12


def quantise(weight: Tensor) -> tuple[Tensor, ...]:
    """The parts of a matrix [out, in]: [out, in] e4m3, [out, 1] fp32, [in, out] e4m3, [in, 1] fp32."""
    return (*_cast(weight), *_cast(weight.t().contiguous()))


def dequantised(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The matrix [out, in] that the forward product sees."""
    return (parts[0].float() * parts[1]).to(dtype)


def product(x: Sequence[Tensor], parts: Sequence[Tensor], bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``x W' + bias`` for x [tokens, in] as `cast` gives it."""
    out = _scaled(x, parts[0], parts[1], dtype)
    return out if bias is None else out.add_(bias)


def product_back(grad: Sequence[Tensor], parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """``grad W`` for grad [tokens, out] as `cast` gives it."""
    return _scaled(grad, parts[2], parts[3], dtype)


def cast(x: Tensor) -> tuple[Tensor, Tensor]:
    """x row by row in e4m3, and the scale of each row [rows, 1]; one kernel on CUDA."""
    being_traced = torch.compiler.is_compiling() or detect_fake_mode([x]) is not None
    if x.is_cuda and not being_traced:
        found: tuple[Tensor, Tensor] = _cast_on_gpu()(x)
        return found
    return _cast(x)


def _scaled(x: Sequence[Tensor], other: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    rows, row_scales = x
    if not rows.is_cuda:
        return ((rows.float() @ other.float().t()) * row_scales * scales.t()).to(dtype)
    return torch._scaled_mm(rows, other.t(), row_scales, scales.t(), out_dtype=dtype, use_fast_accum=True)


def _cast(x: Tensor) -> tuple[Tensor, Tensor]:
    scales = x.abs().amax(dim=1, keepdim=True).float().clamp_min(_TINY) / LARGEST
    return (x.float() / scales).to(torch.float8_e4m3fn), scales


@cache
def _cast_on_gpu() -> Any:
    """The cast as one kernel, whatever the number of rows."""
    return torch.compile(_cast, dynamic=True)
