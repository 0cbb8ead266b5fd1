"""Weights in four bits: NF4 blocks of 64, their scales in eight bits too (arXiv 2305.14314, section 3).

bitsandbytes writes and reads the blocks, on a CPU and on CUDA; this module keeps their parts as plain
tensors, so that they move and are saved as any others.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from luthier.errors import Unsupported

BLOCK = 64
SCALE_BLOCK = 256
NAMES = ("packed", "scales", "code", "scale_scales", "scale_code", "scale_offset")
"""The parts: [numbers / 2, 1] uint8; [blocks] uint8 (fp32 without double quantisation); [16]; and, where
scales are quantised too, [blocks / 256], [256] and one number."""


@cache
def functional() -> Any:
    """bitsandbytes' functions. Raises Unsupported where it is not installed or cannot be used."""
    # On a CPU it warns of an optional kernel package while it is imported.
    log = logging.getLogger("bitsandbytes")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        import bitsandbytes.functional
    except Exception as error:
        raise Unsupported(
            f"four-bit weights need bitsandbytes, which cannot be used here ({error})",
            hint='install it: pip install "luthier[qlora]", or use method.name: lora',
        ) from error
    finally:
        log.setLevel(level)
    return bitsandbytes.functional


def quantise(weight: Tensor, *, double: bool = True) -> tuple[Tensor, ...]:
    """The parts of a matrix, on its device."""
    packed, state = functional().quantize_4bit(
        weight, blocksize=BLOCK, compress_statistics=double, quant_type="nf4", quant_storage=torch.uint8
    )
    return parts_of(packed, state)


def parts_of(packed: Tensor, state: Any) -> tuple[Tensor, ...]:
    """The parts of a matrix that bitsandbytes has quantised, with its ``QuantState``."""
    assert (state.quant_type, state.blocksize) == ("nf4", BLOCK)
    parts: tuple[Tensor, ...] = (packed, state.absmax, state.code)
    if state.nested:
        assert state.state2.blocksize == SCALE_BLOCK
        parts += (state.state2.absmax, state.state2.code, state.offset.reshape(1))
    return parts


def bytes_of(part: Tensor) -> Tensor:
    """A part as bytes. Bytes may lie in a wider type meanwhile (`training.sharding` divides no bytes)."""
    return part if part.dtype == torch.uint8 else part.view(torch.uint8)


def dequantised(parts: Sequence[Tensor], width: int, dtype: torch.dtype) -> Tensor:
    """The matrix [out, width] that the parts stand for."""
    functional()
    bnb = torch.ops.bitsandbytes
    packed, scales, code, *double = parts
    packed = bytes_of(packed)
    numbers = packed.numel() * 2
    # As rows of one block each: bitsandbytes 0.50 on a CPU reads rows of other lengths at the wrong places.
    rows = (numbers // BLOCK, BLOCK) if numbers % BLOCK == 0 else (numbers // width, width)
    del code  # NF4's own, which the kernel has
    # The operations themselves: its functions over them take longer on the host than the kernels on the card.
    if double:
        inner, inner_code, offset = double
        scales = bytes_of(scales)
        scales = bnb.dequantize_blockwise(scales, inner, inner_code, SCALE_BLOCK, torch.float32).add_(offset)
    out: Tensor = bnb.dequantize_4bit(packed, scales, BLOCK, "nf4", rows, dtype)
    return out.view(-1, width)
