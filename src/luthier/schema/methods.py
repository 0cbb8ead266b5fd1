"""The same model trained by each method, measured, and what a guide says of the methods."""

from __future__ import annotations

from luthier.schema.base import Fact


class MeasuredMethod(Fact):
    """One method over all seeds: medians, or one value each."""

    name: str
    """full, lora, qlora, float8-lora."""
    seeds: tuple[int, ...]
    trained: int
    """Weights that are trained."""
    saved: int
    """Bytes of what is saved."""
    step: float
    """Seconds of a step, the median over steps and seeds (on the card of the times)."""
    peak: int
    """Bytes at the height of training, the most over seeds."""
    losses: tuple[float, ...]
    """Validation loss at the end, by seed, in nats a token."""

    @property
    def loss(self) -> float:
        """Mean validation loss."""
        return sum(self.losses) / len(self.losses)


class MeasuredMethods(Fact):
    """One table: the same model, rows, steps and card for all methods."""

    model: str
    weights: int
    """Weights of the model."""
    data: str
    steps: int
    rows: int
    """Rows a step."""
    tokens: float
    """Mean tokens a step."""
    card: str
    timed_on: str
    """The card of the times, where each row ran alone."""
    versions: dict[str, str]
    methods: tuple[MeasuredMethod, ...]


class MethodClaim(Fact):
    """One row of a guide's table of methods beside what was measured."""

    about: str
    guide: dict[str, str]
    """Method -> the guide's words."""
    measured: dict[str, str]
    finding: str
    """What the measurement says of the guide's words."""
