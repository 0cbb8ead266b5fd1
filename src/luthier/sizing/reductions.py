"""What CUDA's own sums take beside their result."""

from __future__ import annotations

PROCESSORS, THREADS = 132, 2048
"""Of an H100 or H200: multiprocessors, and the threads that each can hold. Taken for every card."""
BLOCK, WARP, VECTOR = 512, 32, 4
LEAST, MOST = 16, 256
"""Values that a thread adds up, at least and at most, before a sum is divided over blocks."""


def column_sum_bytes(rows: int, columns: int) -> int:
    """Bytes in which blocks leave their fp32 parts of the sum of a 16-bit matrix over its rows.

    A bias's gradient is such a sum. The buffer has room for a whole block's outputs in each column (ATen's
    Reduce.cuh, ``global_memory_size``), so that it can be larger than the matrix: up to 138 MB, and more from
    about 67,000 rows on. Compiled layers sum in kernels of their own.
    """
    if columns % VECTOR:
        return 0  # not read by vectors: the parts are a quarter of it and less
    width = min(WARP, 1 << max(0, (columns // VECTOR).bit_length() - 1))
    height = BLOCK // VECTOR // width
    each = -(-rows // height)
    grid = -(-(columns // VECTOR) // width)
    target = PROCESSORS * (THREADS // (width * height))
    if rows < height * LEAST or each < MOST or grid > target:
        return 0
    blocks = max(min(-(-target // grid), -(-each // LEAST)), -(-each // MOST))
    return 4 * columns * blocks * width * VECTOR if blocks > 1 else 0
