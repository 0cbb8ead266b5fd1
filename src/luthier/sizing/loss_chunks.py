"""How many logits the chunked losses hold at once: the trainer cuts by it, and the formula counts by it."""

from __future__ import annotations

CHUNK_NUMBERS = 1 << 24
"""Logits in numbers: 64 MiB in fp32, small beside any model's weights and large enough for full speed of the
matrix product."""
CUDA_CHUNK_NUMBERS = 1 << 27
"""On CUDA, where a product of fewer rows would leave most of the chip idle: 256 MiB in bf16."""
CUDA_CHUNK_NUMBERS_WITH_WEIGHT = 1 << 29
"""Where each chunk's share of the weight's gradient must be added up too."""
LEAST_ROWS = 16


def chunk_rows(words: int, *, fused: bool, trains_weight: bool = False) -> int:
    """Rows of one chunk. words: of the vocabulary; fused: whether a kernel turns 16-bit logits into their
    gradient (CUDA in half precision); trains_weight: whether the head is trained.
    """
    numbers = CHUNK_NUMBERS
    if fused:
        numbers = CUDA_CHUNK_NUMBERS_WITH_WEIGHT if trains_weight else CUDA_CHUNK_NUMBERS
    return max(LEAST_ROWS, numbers // words)


def row_stride(words: int) -> int:
    """Numbers from one row of 16-bit logits to the next: rows begin at multiples of sixteen bytes, which the
    fast matrix products need.
    """
    return -(-words // 8) * 8
