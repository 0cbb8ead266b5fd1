"""What a training tells, on its way into the run's files: with time left, utilisation and corrections."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING, Any

from luthier.runs.directory import RunDirectory
from luthier.runs.stages import load_estimate
from luthier.schema.base import Range
from luthier.schema.data import DataReport
from luthier.schema.estimate import peak_on
from luthier.schema.run import Correction, Planned

if TYPE_CHECKING:
    from luthier.runs.worker import Board

WARM_UP = 2
"""Steps of a process whose time is not taken for the others': kernels are chosen, memory is fetched."""
CORRECT_AT = 5
"""Steps after which the prediction is corrected; the largest of the run are among them."""
SETTLED = 20
"""From so many steps on their mean counts, stalls with it; among fewer one stall would weigh too much, and
the median does. Of eight timed rows (benchmarks/memory/grid.jsonl, seen) ten steps' median is within 5 % of
what followed in seven, their mean in five."""
LEAST_BAND = 0.05
"""No rate from a few steps is better known than this."""

Values = dict[str, Any]


@dataclass
class Pace:
    """Seconds a token and a validation, by what was done so far in this process."""

    tokens: int | None
    """Training tokens of the whole run, where they are known."""
    validations: Callable[[int, int], int]
    """From steps done and in all to validations still to come."""
    rates: list[float] = field(default_factory=list)
    """Seconds a token (where tokens are not known: a step) of each step after the first ones."""
    first: list[float] = field(default_factory=list)
    validation: float = 0.0

    def step(self, values: Mapping[str, Any]) -> None:
        """Take in one step."""
        amount = values["tokens"] if self.tokens else 1
        kept = self.first if len(self.first) < WARM_UP else self.rates
        kept.append(values["seconds"] / max(1, amount))

    @property
    def rate(self) -> Range:
        """Seconds a token (or step), with a band of two standard errors and not less than a twentieth."""
        rates = self.rates or self.first
        middle = fmean(rates) if len(rates) >= SETTLED else median(rates)
        error = 2 * stdev(rates) / math.sqrt(len(rates)) if len(rates) > 1 else middle
        wide = max(error, LEAST_BAND * middle)
        return Range(low=max(0.0, middle - wide), expected=middle, high=middle + wide)

    def left(self, values: Mapping[str, Any]) -> Range:
        """Seconds until the training is over."""
        step, total = values["step"], values["total_steps"]
        missing = total - step
        if self.tokens:
            missing = max(0, self.tokens - values["total_tokens"]) if step < total else 0
        rest, rate = self.validations(step, total) * self.validation, self.rate
        return Range(
            low=missing * rate.low + rest,
            expected=missing * rate.expected + rest,
            high=missing * rate.high + rest,
        )


class Recorder:
    """Told of every event of a training; writes ``metrics.jsonl`` and passes metrics on to trackers.

    follow: more listeners, each told of what is written.
    """

    def __init__(
        self, run: RunDirectory, board: Board, follow: tuple[Callable[[Values], None], ...] = ()
    ) -> None:
        self.run, self.board, self.follow = run, board, follow
        self.estimate = load_estimate(run)
        recipe = run.recipe
        planned = run.stage("planned", Planned)
        every = recipe.training.evaluate_every or 0
        report = run.stage("data", DataReport)
        held_out = report is not None and any(s.name == "validation" and s.kept for s in report.splits)
        self.pace = Pace(
            None if planned is None else planned.tokens,
            lambda step, total: -(-(total - step) // every) if every and held_out else 0,
        )
        env: Values = run.stage_values("env") or {}
        rate = env.get("probe", {}).get(recipe.model.dtype or "")
        self._per_token = 0.0
        """Seconds that one token would take at the measured rate of matrix products."""
        if planned is not None and rate:
            self._per_token = planned.flops / rate / recipe.training.devices
        self._spent = 0.0
        self._corrected = run.status.correction is not None

    def __call__(self, values: Values) -> None:
        match values["kind"]:
            case "samples":
                self.run.append("samples", {key: value for key, value in values.items() if key != "kind"})
                return
            case "step" | "skipped":
                values = self._step(values)
            case "validation":
                self.pace.validation = values["seconds"]
                self._spent += values["seconds"]
            case "note":
                self.board.event("note", text=values["text"])
        self.run.append("metrics", values)
        for listener in self.follow:
            listener(values)

    def _step(self, values: Values) -> Values:
        self.pace.step(values)
        self._spent += values["seconds"]
        left = self.pace.left(values)
        self.board.set(step=values["step"], total_steps=values["total_steps"])
        if not self._corrected and values["step"] >= min(CORRECT_AT, values["total_steps"]):
            self._correct(values, left)
        found = {**values, "seconds_left": round(left.expected, 1)}
        if self._per_token:
            found["mfu"] = round(values["tokens_per_second"] * self._per_token, 4)
        return found

    def _correct(self, values: Values, left: Range) -> None:
        """Say once what the first steps make of the prediction, which stays as it was."""
        self._corrected = True
        done, peak = self._spent, values["peak_memory"]
        said, memory = self.estimate, None
        if said is not None:
            memory = peak_on(said, _device(self.run))
        correction = Correction(
            step=values["step"],
            seconds=Range(low=done + left.low, expected=done + left.expected, high=done + left.high),
            predicted_seconds=None if said is None else said.seconds,
            memory=Range(low=peak, expected=peak, high=peak * (1 + LEAST_BAND)),
            predicted_memory=memory,
        )
        self.board.set(correction=correction)
        self.board.event("corrected", **correction.model_dump(mode="json"))


def _device(run: RunDirectory) -> str:
    return str((run.stage_values("model") or {}).get("device", "cpu"))
