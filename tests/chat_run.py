"""A training of a task that is already loaded, perhaps to a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.errors import Interrupted
from luthier.schema.protocols import Splits
from luthier.training.checkpoint import load_weights


def fitted(task: Any, splits: Splits, run: Path, stop_after: int | None = None) -> dict[str, Any]:
    """Train the task to its end, or to a stop after so many steps; the newest checkpoint's weights."""
    steps: list[int] = []

    def ask() -> Any:
        steps.append(1)
        return "stop" if len(steps) == stop_after else None

    words: dict[str, Any] = {"recipe_digest": "d", "on_metrics": lambda _: None, "control": ask}
    task.splits = splits
    if stop_after is None:
        task.fit(splits, run, **words)
    else:
        with pytest.raises(Interrupted):
            task.fit(splits, run, **words)
    return dict(load_weights(max((run / "checkpoints").iterdir())))
