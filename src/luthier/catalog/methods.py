"""Full fine-tuning, LoRA, QLoRA and LoRA over eight bits, measured on one model: read from the package."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from luthier.schema.methods import MeasuredMethods

SHIPPED = Path(__file__).with_name("methods.json")
"""Written by ``benchmarks/speed/methods_table.py`` from the raw rows."""


@lru_cache(maxsize=1)
def measured_methods() -> MeasuredMethods:
    """The newest whole table."""
    return MeasuredMethods.model_validate_json(SHIPPED.read_bytes())
