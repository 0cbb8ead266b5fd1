"""New runs from old ones: the same recipe again, a finished run that goes on, a branch from a checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.errors import CheckpointError, FileProblem, RecipeError, UsageError
from luthier.runs.directory import RunDirectory, find_run
from luthier.runs.model import Say
from luthier.schema.load import recipe_from
from luthier.schema.recipe import Full, Lora, Recipe
from luthier.schema.run import Changed, Origin
from luthier.training.manifest import CHECKPOINTS, STATE, adopt, is_whole, step_name, steps

if TYPE_CHECKING:
    from luthier.runs.prepare import Prepared

FIXED = ("task", "model", "method", "data", "seed", "training.batch_size", "training.micro_batch_size",
         "training.sequence_length", "training.optimizer")  # fmt: skip
"""What a checkpoint stands on: weights, optimiser states, and the order of the rows."""


def recipe_of(run: RunDirectory, overrides: Sequence[str], *, keep: bool) -> Recipe:
    """A run's recipe with changes. keep: derived values stay; else they are derived anew.

    Without changes all values stay, derived ones too. The new run is named anew unless it is named.
    """
    recipe = run.recipe
    values = recipe.model_dump(mode="json", exclude_none=True)
    if overrides and not keep:
        for key in recipe.sources:
            _drop(values, key)
        values["sources"] = {}
    elif "training.epochs" in recipe.sources:
        _drop(values, "training.epochs")  # follows from training.max_steps, which may have changed
    if any(word.startswith("training.devices=") for word in overrides):
        _drop(values, "training.parallel")  # how these share the training is chosen anew
        known = values.get("sources", {})
        values["sources"] = {key: why for key, why in known.items() if "training.parallel" not in key}
    found = recipe_from(values, overrides)
    changed = changes(recipe, found)
    sources = {key: text for key, text in found.sources.items() if key not in changed}
    return found.model_copy(update={"sources": sources})


def _drop(values: dict[str, Any], key: str) -> None:
    *parents, last = key.split(".")
    place: Any = values
    for part in parents:
        place = place.get(part) if isinstance(place, dict) else None
    if isinstance(place, dict):
        place.pop(last, None)


def settings(recipe: Recipe) -> dict[str, str]:
    """Dotted setting -> its value as YAML (JSON is YAML); what is not set is left out."""
    found: dict[str, str] = {}

    def walk(values: dict[str, Any], prefix: str) -> None:
        for key, value in values.items():
            if isinstance(value, dict) and value and prefix + key not in ("data.columns", "data.test"):
                walk(value, f"{prefix}{key}.")
            else:
                found[prefix + key] = json.dumps(value, ensure_ascii=False)

    walk(recipe.model_dump(mode="json", exclude_none=True, exclude={"sources", "version"}), "")
    return found


def changes(before: Recipe, after: Recipe) -> dict[str, Changed]:
    """Settings in which two recipes differ, by dotted name."""
    one, other = settings(before), settings(after)
    keys = sorted(one.keys() | other.keys())
    return {
        key: Changed(before=one.get(key), after=other.get(key))
        for key in keys
        if one.get(key) != other.get(key)
    }


def clone(name: str, overrides: Sequence[str], *, say: Say, offline: bool = False) -> tuple[Prepared, Origin]:
    """The recipe of a run, for a new one that begins at the beginning. Errors: as ``prepare``."""
    parent = find_run(name)
    from luthier.runs.prepare import prepare  # tokenizers and numpy: only where rows are read

    prepared = prepare(recipe_of(parent, overrides, keep=False), say=say, offline=offline)
    changed = changes(parent.recipe, prepared.recipe)
    return prepared, Origin(kind="clone", parent=parent.id, path=str(parent.path), changed=changed)


def extend(
    name: str, overrides: Sequence[str], *, say: Say, offline: bool = False
) -> tuple[Prepared, Origin]:
    """A finished run that trains for longer. Errors: as ``branch``; UsageError where it would not."""
    parent = find_run(name)
    if parent.stage_values("train") is None:
        raise UsageError(
            f"{parent.id} has not finished training",
            hint=f"go on with it first: luthier train --resume {parent.id}",
        )
    last, before = _available(parent)[-1], parent.recipe.training
    prepared, origin = _from_checkpoint("extend", parent, last, overrides, say=say, offline=offline)
    if prepared.resolved.steps <= last:
        most = prepared.recipe.training.max_steps
        if most is None:
            hint = f"give more training.epochs, for example training.epochs={(before.epochs or 1) * 2:g}"
        else:
            hint = (
                f"training.max_steps={most} ends it there: give more of them "
                f"(training.max_steps={last * 2}), or epochs instead (~training.max_steps training.epochs=2)"
            )
        raise UsageError(
            f"{parent.id} has done {last} steps and would have {prepared.resolved.steps} now", hint=hint
        )
    return prepared, origin


def branch(
    name: str, overrides: Sequence[str], *, say: Say, offline: bool = False
) -> tuple[Prepared, Origin]:
    """A new run from a checkpoint, written ``RUN@STEP`` (or ``RUN@last``, ``RUN@best``), with other settings.

    Errors: UsageError for a step that has no whole checkpoint, RecipeError for settings that the
    checkpoint stands on, CheckpointError when the data have changed since.
    """
    run, _, at = name.partition("@")
    parent = find_run(run)
    step = _step_of(parent, at)
    prepared, origin = _from_checkpoint("branch", parent, step, overrides, say=say, offline=offline)
    if prepared.resolved.steps <= step:
        raise UsageError(
            f"step {step} is not before the end: the new run would have {prepared.resolved.steps} steps",
            hint=f"give more training.epochs, or branch from an earlier step: {_listed(_available(parent))}",
        )
    return prepared, origin


def _from_checkpoint(
    kind: Literal["extend", "branch"], parent: RunDirectory, step: int, overrides: Sequence[str], *, say: Say,
    offline: bool,
) -> tuple[Prepared, Origin]:  # fmt: skip
    recipe = recipe_of(parent, overrides, keep=True)
    before = parent.recipe
    for key in changes(before, recipe):
        if any(key == fixed or key.startswith(fixed + ".") for fixed in FIXED):
            raise RecipeError(
                f"{key} cannot be changed from a checkpoint on: weights, states or order of rows rest on it",
                hint=f"begin a new run with it: luthier train --clone {parent.id} ..., or start from these "
                f"weights: luthier train recipe.yaml --init-from {parent.id}",
            )
    env: dict[str, Any] = parent.stage_values("env") or {}
    now = datetime.fromisoformat(env["now"]) if "now" in env else None
    from luthier.runs.prepare import prepare

    prepared = prepare(recipe, say=say, offline=offline, now=now)
    known = parent.stage_values("data")
    if known is not None and known["digest"] != prepared.data.report.digest:
        raise CheckpointError(
            f"the data files have changed since {parent.id} was started",
            file=before.data.train[0],
            hint=f"bring the old files back, or start anew: luthier train --clone {parent.id}",
        )
    origin = Origin(
        kind=kind,
        parent=parent.id,
        path=str(parent.path),
        step=step,
        changed=changes(before, prepared.recipe),
        rule=joint(step, prepared),
    )
    return prepared, origin


def joint(step: int, prepared: Prepared) -> str:
    """What the learning rate does where the new run goes on."""
    training, total = prepared.recipe.training, prepared.resolved.steps
    if training.schedule == "constant":
        return f"the rate stays at {training.learning_rate:g}"
    return (
        f"the {training.schedule} schedule is laid over all {total} steps: step {step + 1} has the rate that "
        "it would have had in a run of that length from the beginning"
    )


def _available(run: RunDirectory) -> list[int]:
    folder = run.path / CHECKPOINTS
    found = [step for step in steps(folder) if is_whole(folder / step_name(step))]
    if not found:
        raise UsageError(f"{run.id} has no whole checkpoint", hint=f"luthier train --resume {run.id}")
    return found


def _step_of(run: RunDirectory, at: str) -> int:
    """The step that ``@STEP`` means. Errors: UsageError with those that there are."""
    there = _available(run)
    if at in ("", "last"):
        return there[-1]
    if at == "best":
        state = json.loads(
            (run.path / CHECKPOINTS / step_name(there[-1]) / STATE).read_text(encoding="utf-8")
        )
        return int(state.get("best_step") or there[-1])
    if at.isdecimal() and int(at) in there:
        return int(at)
    raise UsageError(
        f"{run.id} has no whole checkpoint of step {at}",
        hint=f"there are {_listed(there)}; training.keep_last keeps more of them",
    )


def _listed(found: Sequence[int]) -> str:
    return ", ".join(map(str, found))


def start_from(
    prepared: Prepared, origin: Origin, *, root: Path | None = None, run_id: str | None = None
) -> RunDirectory:
    """Make the new run's directory, with the parent's checkpoint where it goes on from one."""
    from luthier.runs.prepare import create_run

    run = create_run(prepared, root=root, run_id=run_id)
    run.save_stage("origin", "", origin)
    parent = Path(origin.path)
    if origin.step is not None:
        _take_over(parent, run, origin.step)
    if origin.kind != "warm-start" and (parent / "baseline.json").is_file():
        # Its digest says whether it is the baseline of the new run too.
        shutil.copyfile(parent / "baseline.json", run.path / "baseline.json")
    return run


def _take_over(parent: Path, run: RunDirectory, step: int) -> None:
    """The checkpoint of a step, and the best one up to it, under no recipe's name."""
    old, new = parent / CHECKPOINTS, run.path / CHECKPOINTS
    state = json.loads((old / step_name(step) / STATE).read_text(encoding="utf-8"))
    best = state.get("best_step")
    anew: dict[str, object] = {"ended": False, "stale": 0}
    if best is not None and best != step:
        if is_whole(old / step_name(best)):
            adopt(old / step_name(best), new)
        else:
            anew |= {"best_step": None, "best_loss": None}
    adopt(old / step_name(step), new, **anew)


def adapter_of(name: str) -> Path:
    """The folder of an adapter: one that is named, or the one that a run has shipped."""
    folder = Path(name).expanduser()
    if (folder / "adapter_config.json").is_file():
        return folder.resolve()
    if folder.is_dir() and not (folder / "status.json").exists():
        raise UsageError(
            f"{folder} is not an adapter folder: adapter_config.json is missing",
            hint="name a folder with adapter_config.json and adapter_model.safetensors, or a run",
        )
    run = find_run(name)
    shipped = run.path / "artifacts" / "adapter"
    if (shipped / "adapter_config.json").is_file():
        return shipped
    if isinstance(run.recipe.method, Full):
        merged = run.path / "artifacts" / "merged"
        raise UsageError(
            f"{run.id} trained all weights and has no adapter",
            hint=f"start from its weights: model.id={merged}",
        )
    raise UsageError(
        f"{run.id} has shipped no adapter", hint=f"write it first: luthier export {run.id} --adapter"
    )


def warm_start(recipe: Recipe, name: str) -> tuple[Recipe, Origin]:
    """A recipe whose adapters start from saved ones. Errors: UsageError where there are none."""
    folder = adapter_of(name)
    if not isinstance(recipe.method, Lora):
        raise UsageError(
            "--init-from starts adapters, and this recipe trains all weights", hint="set method.name=lora"
        )
    method = _as_saved(recipe.method, folder).model_copy(update={"init_from": str(folder)})
    return recipe.model_copy(update={"method": method}), Origin(
        kind="warm-start", parent=name, path=str(folder)
    )


def _as_saved(method: Lora, folder: Path) -> Lora:
    """The recipe's method, if the adapter's shape is its own; the saved scale where the recipe names none."""
    path = folder / "adapter_config.json"
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        shape = {
            "rank": saved["r"],
            "rslora": bool(saved.get("use_rslora")),
            "dora": bool(saved.get("use_dora")),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileProblem(f"cannot be read as an adapter's settings ({error})", file=path) from None
    others = [
        f"method.{key}={str(value).lower()}" for key, value in shape.items() if getattr(method, key) != value
    ]
    if others:
        raise RecipeError(
            f"the adapter in {folder} was made with {', '.join(others)}, and the recipe says otherwise",
            hint=f"add {' '.join(others)} to the command",
        )
    return (
        method if method.alpha is not None else method.model_copy(update={"alpha": saved.get("lora_alpha")})
    )
