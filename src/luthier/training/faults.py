"""Losses that are not numbers, and losses that leap: told from the ordinary, kept with their batch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor

from luthier.files import write_text

BAD_BATCHES = "bad-batches"
MOST_KEPT = 20
"""Batches kept of one run; a run that leaps all the time must not fill the disk."""
WINDOW = 50
"""Losses that a new one is compared with."""
LEAST = 20
"""Losses that must be known before any is called a leap."""
LEAP = 8.0
"""So many robust standard deviations (1.4826 times the median absolute deviation) above the median."""
LEAP_SHARE, LEAP_NATS = 0.5, 0.5
"""And by at least this share of the median and this much: small losses are noisy by nature."""


def leaps(loss: float, recent: Sequence[float]) -> bool:
    """Whether a loss stands far above those of the last steps."""
    if len(recent) < LEAST:
        return False
    middle = median(recent)
    spread = 1.4826 * median(abs(value - middle) for value in recent)
    return loss - middle > max(LEAP * spread, LEAP_SHARE * middle, LEAP_NATS)


def not_a_number(loss: float, grad_norm: float) -> str | None:
    """``loss`` or ``gradient``, whichever is not finite; None where both are."""
    if not math.isfinite(loss):
        return "loss"
    return None if math.isfinite(grad_norm) else "gradient"


def keep_batch(
    directory: Path, *, step: int, why: str, loss: float, grad_norm: float, rows: Sequence[str], batches: Any
) -> Path | None:
    """Write what a step was made of below a run's folder; None when enough of them are there.

    One JSON object: step, why, loss, grad_norm (as texts: they may be no numbers), rows (``file:line``)
    and every tensor of each micro-batch by name.
    """
    folder = directory / BAD_BATCHES
    path = folder / f"step-{step:08d}.json"
    if not path.exists() and len(list(folder.glob("step-*.json"))) >= MOST_KEPT:
        return None
    saved = {
        "step": step,
        "why": why,
        "loss": str(loss),
        "grad_norm": str(grad_norm),
        "rows": list(rows),
        "micro_batches": [_tensors(batch) for batch in batches],
    }
    return write_text(path, json.dumps(saved) + "\n")


def _tensors(batch: Any) -> dict[str, Any]:
    names = [entry.name for entry in fields(batch)] if is_dataclass(batch) else list(vars(batch))
    found = {name: getattr(batch, name) for name in names}
    return {name: value.tolist() for name, value in found.items() if isinstance(value, Tensor)}


def some(rows: Sequence[str], most: int = 3) -> str:
    """The first rows, and how many more."""
    return ", ".join(rows[:most]) + (f" and {len(rows) - most} more" if len(rows) > most else "")
