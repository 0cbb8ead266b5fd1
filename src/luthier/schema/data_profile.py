"""Lengths of a run's rows: all that a plan needs to know of its data."""

from __future__ import annotations

from luthier.schema.base import Record
from luthier.schema.data import Lengths


class LengthProfile(Record):
    """Tokens of the rendered rows, before any cut to a sequence length."""

    train: Lengths
    """Tokens a training row."""
    trained_tokens: int
    """Training tokens that carry loss."""
    validation: Lengths | None = None
    """Tokens a validation row."""
    inputs: float = 1.0
    """Texts (or pairs read together) of a training row, in the mean: two and more for pairs and rankings."""
    patches: int = 0
    """Patches that a vision tower reads for the training row with the most of them."""
    patches_total: int = 0
    """Patches of all training rows."""
    prompts: Lengths | None = None
    """Tokens of the held-out prompts that will be answered, over all test splits."""
    answers: Lengths | None = None
    """Tokens of their expected answers."""

    @property
    def trained_share(self) -> float:
        """Share of training tokens that carry loss."""
        return self.trained_tokens / self.train.total if self.train.total else 1.0
