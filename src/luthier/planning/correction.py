"""Correct a prediction by what runs of the same kind on the same machine came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from luthier.schema.base import Range
from luthier.schema.estimate import Estimate, TrainingShape
from luthier.schema.model import Architecture
from luthier.schema.recipe import Method
from luthier.sizing.parameters import count_parameters

ALIKE_SIZE = 2.0
"""Models with up to so many times the parameters are of one kind."""
ALIKE_TOKENS = 4.0
"""Micro-batches with up to so many times the tokens are of one kind."""
MOST_OFF = 4.0
"""A ratio beyond this is another machine's doing (other work on it, sleep), not the model's."""
ENOUGH = 3
"""From so many runs on their own spread is the band."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """One run: measured over what the formula, without any correction, says of it today."""

    model_type: str
    parameters: int
    method: str
    dtype: str
    checkpointing: str
    tokens: int
    """Of a micro-batch."""
    memory: float
    seconds: float | None
    offloaded: bool = False
    """Whether frozen weights waited in the host's memory."""


@dataclass(frozen=True, slots=True)
class Corrections:
    """What runs on this machine teach. Empty where there were none."""

    ratios: tuple[Ratio, ...] = ()

    def correct(
        self, estimate: Estimate, arch: Architecture, method: Method, shape: TrainingShape, dtype: str
    ) -> Estimate:
        """The estimate as it is, or corrected by the runs of its kind, with the source stated."""
        found = self._alike(arch, method, shape, dtype) if self.ratios else []
        if not found:
            return estimate
        many = len(found)
        memory = [ratio.memory for ratio in found]
        times = [ratio.seconds for ratio in found if ratio.seconds is not None]
        runs = f"{many} run{'s' if many > 1 else ''}"
        said = f"measured here: {runs} of this kind, memory {_factor(memory)}"
        changed: dict[str, object] = {
            "process": corrected(estimate.process, memory),
            "tensors": corrected(estimate.tensors, memory),
            "basis": "measured",
        }
        if times and estimate.seconds is not None:
            said += f", time {_factor(times)}"
            changed["seconds"] = corrected(estimate.seconds, times)
            if (rate := estimate.tokens_per_second) is not None:
                changed["tokens_per_second"] = corrected(rate, [1 / value for value in times])
            if estimate.cost is not None:
                changed["cost"] = corrected(estimate.cost, times)
        changed["assumptions"] = (*estimate.assumptions, said + " of the formula's")
        return estimate.model_copy(update=changed)

    def _alike(self, arch: Architecture, method: Method, shape: TrainingShape, dtype: str) -> list[Ratio]:
        size = count_parameters(arch).total
        return [
            ratio
            for ratio in self.ratios
            if ratio.model_type == arch.model_type
            and ratio.method == method.name
            and ratio.dtype == dtype
            and ratio.checkpointing == shape.activation_checkpointing
            and ratio.offloaded == shape.offload_parameters
            and _within(ratio.parameters, size, ALIKE_SIZE)
            and _within(ratio.tokens, shape.tokens, ALIKE_TOKENS)
        ]


def corrected(said: Range, ratios: Sequence[float]) -> Range:
    """A range moved by the ratios' median; from three on their spread, and a twentieth, is its band.

    With fewer the formula's own relative band stays.
    """
    middle = said.expected * median(ratios)
    if len(ratios) < ENOUGH:
        low, high = said.low * min(ratios), said.high * max(ratios)
    else:
        low, high = said.expected * min(ratios) * 0.95, said.expected * max(ratios) * 1.05
    return Range(low=min(low, middle), expected=middle, high=max(high, middle))


def _factor(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.2f} times"


def _within(one: float, other: float, factor: float) -> bool:
    return bool(one and other) and 1 / factor <= one / other <= factor
