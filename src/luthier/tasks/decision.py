"""From logits to labels as was chosen on validation rows; without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import FileProblem
from luthier.evaluation.calibration import decide, probabilities
from luthier.schema.classification import DECISION_FILE, Decision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def read_decision(directory: Path) -> Decision | None:
    """What was chosen for a saved classifier; None where nothing was."""
    path = directory / DECISION_FILE
    if not path.is_file():
        return None
    try:
        return Decision.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileProblem(f"cannot be read: {error}", file=path, hint="export the run again") from error


def described(logits: NDArray[np.float64], decision: Decision) -> list[dict[str, Any]]:
    """For each row of logits its labels and the probability of every label, the highest first."""
    chances = probabilities(logits, decision)
    return [
        {
            "labels": list(labels),
            "probabilities": {
                decision.labels[place]: float(row[place]) for place in (-row).argsort(kind="stable")
            },
        }
        for labels, row in zip(decide(logits, decision), chances, strict=True)
    ]
