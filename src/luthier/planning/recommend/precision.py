"""Which families overflow in float16, and which machines would train in it."""

from __future__ import annotations

from luthier.schema.hardware import Hardware
from luthier.schema.model import ModelCard

WIDE_RANGE = ("qwen3_moe", "qwen3_5", "qwen3_5_moe", "qwen3_next")
"""Model types that Unsloth's list of forced float32 names, besides those whose caveats say so."""


def float16_unsafe(card: ModelCard) -> bool:
    """Whether training in float16 is known to overflow, so that a GPU without bf16 is a risk."""
    shape = card.architecture
    return any("float16" in text for text in card.caveats) or (
        shape is not None and shape.model_type in WIDE_RANGE
    )


def lacks_bf16(hardware: Hardware) -> bool:
    """Whether an accelerator would have to train in float16."""
    return any(not accelerator.bf16 for accelerator in hardware.accelerators)
