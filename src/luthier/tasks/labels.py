"""Saved classifiers that answer: labels with their probabilities for texts and pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from luthier.data.inputs import Input
from luthier.data.tokenizer import load_tokenizer
from luthier.errors import Unsupported
from luthier.models.classifier import logits_of, saved_labels
from luthier.models.load import check_model_directory, quiet
from luthier.schema.classification import Decision
from luthier.tasks.decision import described, read_decision
from luthier.tasks.encoded import encode, pad, reads_segments
from luthier.tasks.planned import by_length

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

AT_ONCE = 4096
"""Padded tokens of a batch."""


class SavedClassifier:
    """A folder that AutoModelForSequenceClassification loads, ready to answer.

    What was chosen on validation rows (temperature, thresholds, refusal) is read from beside the weights
    where Luthier wrote it; other folders answer by 0.5 or by the best label. Errors: Unsupported for a
    folder without a head over labels.
    """

    def __init__(self, directory: Path, *, device: torch.device | str = "cpu") -> None:
        settings = check_model_directory(directory)
        labels = saved_labels(directory)
        if labels is None:
            raise Unsupported(
                f"{directory.name} is no classifier: it has no head over labels",
                file=directory,
                hint="tune one with task: multi-class-classification or multi-label-classification",
            )
        many = settings.get("problem_type") == "multi_label_classification"
        self.decision = read_decision(directory) or Decision(
            kind="multi-label" if many else "multi-class", labels=labels
        )
        self.tokenizer = load_tokenizer(directory)
        with quiet():
            from transformers import AutoModelForSequenceClassification

            model = AutoModelForSequenceClassification.from_pretrained(
                directory, dtype="auto", local_files_only=True
            )
        if getattr(model.config, "pad_token_id", None) is None:
            model.config.pad_token_id = self.tokenizer.pad_id
        self.model: Any = model.to(device).eval()

    def logits(self, inputs: Sequence[Input]) -> NDArray[np.float64]:
        """[inputs, labels], uncalibrated, in the order of the inputs."""
        encoded = encode(inputs, self.tokenizer, most=self.tokenizer.max_length)
        batches = []
        for places in by_length([len(one) for one in encoded], AT_ONCE):
            batch = pad(
                [encoded[place] for place in places],
                torch.zeros(len(places)),
                pad_id=self.tokenizer.pad_id,
                segments=reads_segments(self.model, self.tokenizer),
            )
            batches.append((places, batch.inputs))
        return logits_of(self.model, batches, len(inputs))

    def classify(self, inputs: Sequence[Input]) -> list[dict[str, Any]]:
        """For each input its labels and the probability of every label, the highest first."""
        if not inputs:
            return []
        return described(self.logits(inputs), self.decision)
