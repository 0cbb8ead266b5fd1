"""Constants fitted to measured rows, written by benchmarks/memory/fit.py: do not edit."""

RUNTIME = 410 << 20
"""Bytes of interpreter, torch and transformers, model not counted."""
HEAP_WASTE = {
    "full": 0.67,
    "lora": 0.69,
    "lora-checkpointing": 0.78,
    "padded-full": 1.75,
    "padded-lora": 2.19,
}
"""Holes that the C library's heap leaves, as a share of a layer's passing tensors, summed over the layers."""
RESERVED = (1.0, 1.013, 1.063)
"""Reserved over allocated memory with expandable segments: lowest, expected, highest."""
CONTEXT_HOPPER = 761 << 20
"""Bytes outside torch's allocator on an H100: context, cuBLAS, kernels."""
