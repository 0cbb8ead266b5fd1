"""A cheap estimator, for what does not hang on the memory model."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from luthier.schema.base import Range
from luthier.schema.estimate import Estimate, Phase
from luthier.schema.hardware import Hardware
from luthier.schema.model import ModelCard
from luthier.schema.plan import BatchShape
from luthier.schema.recipe import Method


def rough(card: ModelCard, method: Method, batch: BatchShape, hardware: Hardware) -> Estimate:
    """Weights and states by parameters, activations by tokens: coarse, monotone and fast."""
    total = card.total or 0
    element = 4 if batch.dtype == "float32" else 2
    per = {"full": element + 4 + 12, "lora": element * 1.05, "qlora": 0.62}[method.name]
    tokens = batch.micro_batch_size * batch.sequence_length
    shape = card.architecture
    width = shape.hidden_size * shape.layers if shape is not None else 100_000
    parts = {
        "weights": int(total * per) // batch.shard,
        "activations": int(tokens * width * (2 if batch.checkpointing else 30)),
        "runtime": 500 * 2**20,
        "buffers": 2**30 * (batch.shard > 1),
    }
    size = sum(parts.values())
    rate = sum(a.bf16_flops or 5e13 for a in hardware.accelerators) * 0.3 or hardware.processor.cores * 2e10
    work = batch.rows * batch.epochs * batch.tokens_per_row * (card.parameters.active or total) * 4
    seconds = work * (1.3 if batch.checkpointing else 1.0) / rate

    def band(value: float) -> Range:
        return Range(low=value * 0.9, expected=value, high=value * 1.1)

    return Estimate(
        phases=(Phase(name="backward", parts=parts),),  # type: ignore[arg-type]
        tensors=band(size),
        process=band(size),
        seconds=band(seconds),
        trainable_parameters=total,
        total_parameters=total,
        flops=work,
        basis="formula",
    )


@pytest.fixture(scope="session", name="rough")
def _rough() -> Callable[[ModelCard, Method, BatchShape, Hardware], Estimate]:
    return rough
