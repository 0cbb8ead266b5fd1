"""How a classifier turns numbers into labels, as chosen on the validation rows."""

from __future__ import annotations

from typing import Literal

from luthier.schema.base import Record

DECISION_FILE = "luthier_classifier.json"
"""Lies beside the weights of a saved classifier. transformers does not need it: it holds what is chosen
on top of the logits."""


class Decision(Record):
    """Labels in the order of the logits, and what is done with them."""

    kind: Literal["multi-class", "multi-label"]
    labels: tuple[str, ...]
    temperature: float = 1.0
    """Logits are divided by this before softmax or sigmoid, so that probabilities mean what they say."""
    thresholds: tuple[float, ...] = ()
    """Multi-label: probability from which each label is given; 0.5 where there is none."""
    refuse_below: float | None = None
    """Multi-class: under this probability of the best label the answer is ``out_of_scope``."""
    out_of_scope: str | None = None
    """What an input outside all labels is called."""
    chosen_on: int = 0
    """Validation rows that these were chosen on; 0 for defaults."""
    notes: tuple[str, ...] = ()
    """What could not be chosen, and why."""
