"""All that a report is made of. Every part may be missing: a run that stopped early has a report too."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from luthier.schema.data import DataReport, Finding
from luthier.schema.estimate import Estimate
from luthier.schema.hardware import Hardware
from luthier.schema.judgement import Judgement
from luthier.schema.licence import Licence
from luthier.schema.measurement import Measurement
from luthier.schema.plan import Plan
from luthier.schema.recipe import Recipe
from luthier.schema.results import Artifact, Comparison, EvalResult, Floor, TrainResult
from luthier.schema.run import Status


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured at one optimiser step."""

    step: int
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_second: float | None = None
    memory: float | None = None
    """Bytes."""
    validation_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """A command to try next, and what for."""

    line: str
    purpose: str


@dataclass(frozen=True)
class ReportContext:
    """A run, as read from its directory."""

    run_id: str
    recipe: Recipe
    """The resolved one, with the source of each derived value."""
    created: float | None = None
    """When the run was started, in seconds since the epoch."""
    status: Status | None = None
    hardware: Hardware | None = None
    matrix_gflops: float | None = None
    """Matrix products of this machine in the run's precision, measured, in GFLOP/s."""
    plan: Plan | None = None
    """What was recommended, where the recommender was asked."""
    estimate: Estimate | None = None
    measurement: Measurement | None = None
    """What the training came to, beside what was predicted, by phase."""
    data: DataReport | None = None
    findings: tuple[Finding, ...] = ()
    train: TrainResult | None = None
    points: tuple[Point, ...] = ()
    baseline: Mapping[str, EvalResult] = field(default_factory=dict)
    """Split -> the untouched model's result."""
    tuned: Mapping[str, EvalResult] = field(default_factory=dict)
    comparisons: tuple[Comparison, ...] = ()
    floors: tuple[Floor, ...] = ()
    """The tuned model against what costs no training."""
    abilities: tuple[Comparison, ...] = ()
    """General ability before and after: what the tuning broke, or did not."""
    abilities_before: Mapping[str, EvalResult] = field(default_factory=dict)
    """Split -> what the untouched model answered there."""
    abilities_after: Mapping[str, EvalResult] = field(default_factory=dict)
    """Split -> what the tuned model answered there."""
    others: tuple[EvalResult, ...] = ()
    """What else answered the same splits: floors, few-shot prompting, GGUF files, served models."""
    judgements: tuple[Judgement, ...] = ()
    """What judging models said of this run's answers, oldest first."""
    artifacts: tuple[Artifact, ...] = ()
    licence: Licence | None = None
    duties: tuple[str, ...] = ()
    """Duties besides those that the licence itself names."""
    revision: str | None = None
    """The Hub commit or content digest of the base model that was used."""
    commands: tuple[Command, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    """Package -> version that made the run."""


def read_points(lines: Iterable[Mapping[str, Any]]) -> tuple[Point, ...]:
    """Points from the lines of ``metrics.jsonl``; of a step that was done again after a resume, the last."""
    steps: dict[int, dict[str, float]] = {}
    names = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "memory")
    for line in lines:
        step = line.get("step")
        if not isinstance(step, int):
            continue
        if line.get("kind") == "step":
            found = {name: _number(line.get(name)) for name in names}
            steps.setdefault(step, {}).update({k: v for k, v in found.items() if v is not None})
        elif line.get("kind") == "validation":
            loss = _number(line.get("loss"))
            if loss is not None:
                steps.setdefault(step, {})["validation_loss"] = loss
    return tuple(Point(step=step, **values) for step, values in sorted(steps.items()))


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)
