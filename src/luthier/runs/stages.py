"""What the finished stages of a run left, as records. Light: nothing of a worker is loaded."""

from __future__ import annotations

from luthier.catalog.index import licence
from luthier.errors import LuthierError
from luthier.runs.directory import RunDirectory
from luthier.schema.estimate import Estimate
from luthier.schema.licence import Licence
from luthier.schema.results import Artifact, Comparison, EvalResult, Floor


def load_results(run: RunDirectory, name: str, inputs: str | None = None) -> dict[str, EvalResult]:
    """The results of a judged model by split; empty where it was not judged."""
    values = run.stage_values(name, inputs) or {}
    return {split: EvalResult.model_validate(result) for split, result in values.items()}


def load_floor_results(run: RunDirectory, inputs: str | None = None) -> list[EvalResult]:
    """What was judged without any training: copies, commonest answers, prompting alone."""
    return [EvalResult.model_validate(result) for result in run.stage_values("floors", inputs) or []]


def load_floors(run: RunDirectory) -> list[Floor]:
    """The tuned model against each floor."""
    return [Floor.model_validate(floor) for floor in run.stage_values("floor_comparisons") or []]


def load_comparisons(run: RunDirectory) -> list[Comparison]:
    """The run's comparisons, one for each test split."""
    return [Comparison.model_validate(c) for c in run.stage_values("comparison") or []]


def load_artifacts(run: RunDirectory) -> list[Artifact]:
    """What the run has written for use elsewhere."""
    return [Artifact.model_validate(a) for a in run.stage_values("artifacts") or []]


def load_estimate(run: RunDirectory) -> Estimate | None:
    """What was predicted when the run was prepared."""
    return run.stage("plan", Estimate)


def load_extra(run: RunDirectory, name: str) -> Comparison:
    """Baseline against tuned on rows that were named later."""
    values = run.stage_values(f"evaluations/{name}")
    assert values is not None, "the job that writes it has ended well"
    return Comparison.model_validate(values["comparison"])


def licence_of(name: str | None) -> Licence | None:
    """The catalogue's entry for a licence, or None where the name is not known."""
    if name is None:
        return None
    try:
        return licence(name)
    except LuthierError:
        return None
