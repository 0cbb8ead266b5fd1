"""What a sweep is asked for and what it found: trials of a search, candidates, a learning curve."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from luthier.schema.base import Record
from luthier.schema.results import Difference, Metric

Kind = Literal["search", "models", "learning-curve"]
Pruner = Literal["median", "hyperband", "none"]
TrialState = Literal["running", "done", "pruned", "infeasible", "failed"]


class Axis(Record):
    """One setting that is searched."""

    key: str
    """Dotted name of the setting."""
    choices: tuple[str, ...] = ()
    """Values as written; empty where a range is searched."""
    low: float | None = None
    high: float | None = None
    step: float | None = None
    """Distance of the values of a range; None: any value."""
    log: bool = False
    """Whether a range is searched by its logarithm."""
    whole: bool = False
    """Whether a range holds whole numbers only."""

    @property
    def count(self) -> int | None:
        """How many values there are; None where they cannot be counted."""
        if self.choices:
            return len(self.choices)
        if self.low is None or self.high is None:
            return None
        if self.whole:
            return int((self.high - self.low) // (self.step or 1)) + 1
        return int((self.high - self.low) / self.step + 1e-9) + 1 if self.step is not None else None


class SweepChoice(Record):
    """All that a sweep needs besides its recipe."""

    version: Literal[1] = 1
    """Version of this format."""
    name: str
    kind: Kind = "search"
    space: tuple[Axis, ...] = ()
    """search: what is varied."""
    trials: int = Field(12, ge=1)
    """search: how many settings are tried."""
    pruner: Pruner = "median"
    """search: what ends a trial early by its validation losses."""
    models: tuple[str, ...] = ()
    """Models that are tuned on the same rows."""
    sizes: tuple[int, ...] = ()
    """learning-curve: numbers of training rows."""
    jobs: int = Field(1, ge=1)
    """Runs at once."""
    seed: int = Field(17, ge=0)
    """Seed of the search; runs keep the recipe's own."""
    price_per_hour: float | None = Field(None, ge=0)
    """US dollars an hour of this machine, for the cost of each run."""


class Trial(Record):
    """One run of a sweep."""

    number: int
    name: str
    """What it is called in tables: settings, a model, a number of rows."""
    settings: dict[str, str] = {}
    """Dotted setting -> value as written."""
    state: TrialState
    run: str | None = None
    """Id of its run; None where none was started."""
    why: str = ""
    """Where its settings came from, if not from the sampler."""
    reason: str = ""
    """Why it is pruned, infeasible or failed."""
    loss: float | None = None
    """Lowest validation loss, in nats a token (or the purpose's own loss); of a pruned trial, its last."""
    losses: tuple[tuple[float, float], ...] = ()
    """Share of the training that was done -> validation loss."""
    same_as: int | None = None
    """Number of the trial with the same settings, whose result was taken."""
    score: Metric | None = None
    """Primary metric on the held-out rows, where the kind of sweep judges every trial on them."""
    difference: Difference | None = None
    """models, learning-curve: to the best on the same rows; None for the best itself."""
    rows: int | None = None
    """learning-curve: training rows."""
    model: str | None = None
    """models: which model."""
    seconds: float | None = None
    """Training and validation, measured."""
    peak_memory: int | None = None
    """Bytes, measured."""
    predicted_seconds: float | None = None
    predicted_memory: int | None = None
    """Bytes of the process, the upper end of the band."""
    cost: float | None = None
    """US dollars of the training, where a price was given."""


class CurveFit(Record):
    """``1 - score = floor + scale * rows ** -exponent`` through a learning curve, with bands."""

    floor: float
    """Error that no number of rows takes away."""
    scale: float
    exponent: float
    points: tuple[tuple[float, float, float, float], ...]
    """Rows, low, expected, high: the fitted score with its 95 % band, beyond the measured rows too."""
    ceiling: Metric
    """Score that the curve runs towards, with its band."""
    doubled: Metric
    """Gain in score from twice as many rows as the most that were tried."""
    advice: Literal["more-data", "bigger-model", "unclear"]
    words: str
    """The advice with its figures, in a sentence or two."""


class SweepResult(Record):
    """What a sweep has found so far."""

    choice: SweepChoice
    path: str
    """Folder of the sweep."""
    metric: str = "validation loss"
    """What trials are ranked by."""
    trials: tuple[Trial, ...] = ()
    best: int | None = None
    """Number of the best trial."""
    importance: dict[str, float] = {}
    """search: setting -> share of the variance of the loss that it explains (fANOVA)."""
    proved: tuple[str, ...] = ()
    """search: runs that were judged on the held-out rows; more than one means they were used again."""
    curves: dict[str, CurveFit] = {}
    """learning-curve: model -> the fitted curve."""
    notes: tuple[str, ...] = ()

    @property
    def winner(self) -> Trial | None:
        return next((trial for trial in self.trials if trial.number == self.best), None)
