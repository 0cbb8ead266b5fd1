"""Steps that come to no number, or whose loss leaps: what is said and kept of them, when it is too much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import TrainingError
from luthier.schema.recipe import TrainingChoice
from luthier.training.accumulation import StepFigures
from luthier.training.events import Tell, note
from luthier.training.faults import keep_batch, leaps, some
from luthier.training.source import BatchSource


@dataclass(frozen=True)
class BadStep:
    """A step (counted from 1), where its batches come from, and what it came to."""

    step: int
    source: BatchSource
    epoch: int
    index: int
    figures: StepFigures

    def rows(self) -> list[str]:
        """Where its rows stand."""
        return list(self.source.rows(self.epoch, self.index))


class BadSteps:
    """directory: the run's folder, where batches are kept. writes: whether this process writes there."""

    def __init__(self, directory: Path, choice: TrainingChoice, tell: Tell, *, writes: bool) -> None:
        self.directory, self.choice, self.tell, self.writes = directory, choice, tell, writes

    def leave_out(self, bad: BadStep, fault: str, skipped: int) -> None:
        """Say that a step is left out; end the run when these are too many. skipped: this one included."""
        kept = self.keep(bad, f"the {fault} is not a number")
        what = f"the {fault} is not a number at step {bad.step} (rows {some(bad.rows())})"
        if skipped > self.choice.max_skipped_steps:
            before = f", after {skipped - 1} steps that were left out" if skipped > 1 else ""
            raise TrainingError(
                f"{what}{before}",
                file=kept,
                hint="look at these rows, lower training.learning_rate or lengthen training.warmup_share; "
                "training.max_skipped_steps allows more such steps; luthier train --resume goes on from the "
                "last checkpoint",
            )
        where = "" if kept is None else f", kept in {kept.relative_to(self.directory)}"
        text = f"{what}: left out, weights untouched{where} ({skipped} of {self.choice.max_skipped_steps})"
        self.tell(note(text))

    def leap(self, bad: BadStep, recent: Sequence[float]) -> bool:
        """Note a loss that leaps above the last ones, and keep its batch; whether to leave the step out."""
        loss = bad.figures.loss
        if self.choice.on_spike == "off" or not leaps(loss, recent):
            return False
        skip = self.choice.on_spike == "skip"
        kept = self.keep(bad, "the loss leaps")
        path = None if kept is None else str(kept.relative_to(self.directory))
        self.tell({"kind": "spike", "step": bad.step, "loss": loss, "skipped": skip, "path": path})
        text = f"the loss leaps to {loss:.3f} at step {bad.step} (rows {some(bad.rows())})"
        outcome = "left out, weights untouched" if skip else "the step counts"
        self.tell(note(f"{text}: {outcome}; batch in {path or 'no file: enough are kept'}"))
        return skip

    def keep(self, bad: BadStep, why: str) -> Path | None:
        """Write what a step was made of; None where this process writes nothing, or enough are kept."""
        if not self.writes:
            return None
        return keep_batch(
            self.directory,
            step=bad.step,
            why=why,
            loss=bad.figures.loss,
            grad_norm=bad.figures.grad_norm,
            rows=bad.rows(),
            batches=bad.source.batches(bad.epoch, bad.index),
        )
