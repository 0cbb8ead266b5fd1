"""Settings that are taken from the catalogue's table of documented values."""

from __future__ import annotations

from luthier.catalog.index import index
from luthier.catalog.purposes import spec_of
from luthier.errors import RecipeError
from luthier.planning.case import Case
from luthier.schema.hyperparameter import Condition, Hyperparameter
from luthier.schema.model import Architecture
from luthier.schema.recipe import Lora, Recipe
from luthier.sizing.parameters import count_parameters


def derive_documented(case: Case) -> None:
    """Values that are taken from the catalogue's table of documented settings."""
    training = case.given.training
    if training.learning_rate is None:
        _from_table(case, "learning_rate")
    if training.epochs is None and training.max_steps is None:
        _from_table(case, "epochs")
    if training.batch_size is None:
        _from_table(case, "batch_size")
        rows = case.profile.train.count
        if case.values["training.batch_size"] > rows:
            case.values["training.batch_size"] = rows
            case.sources["training.batch_size"] = f"all {rows} training rows"
        unit = (training.micro_batch_size or 1) * case.shares
        if case.values["training.batch_size"] % unit:
            case.values["training.batch_size"] = -(-case.values["training.batch_size"] // unit) * unit
            case.sources["training.batch_size"] += f", rounded up to a multiple of {unit}"
    method = case.given.method
    if isinstance(method, Lora):
        case.derive("method.alpha", 2.0 * method.rank, f"twice the rank of {method.rank}")


def _from_table(case: Case, name: str) -> None:
    row = documented(name, case.given, case.arch, case.profile.train.count)
    value = int(row.value) if name == "batch_size" else row.value
    basis = "" if row.basis == "documented" else f"{row.basis}: "
    case.derive(f"training.{name}", value, basis + row.source)


def documented(name: str, recipe: Recipe, arch: Architecture, rows: int) -> Hyperparameter:
    """The first row of the catalogue's table that holds here. Errors: RecipeError when none does."""
    size = count_parameters(arch).total
    for row in index().hyperparameters:
        if row.name == name and _holds(row.when, recipe, arch, size, rows):
            return row
    raise RecipeError(f"training.{name}: no documented value is known", hint=f"set training.{name} yourself")


def _holds(when: Condition, recipe: Recipe, arch: Architecture, size: int, rows: int) -> bool:
    family = arch.model_type.lower()
    kind = "decoder" if arch.causal else spec_of(recipe.task).table_kind
    return (
        (not when.methods or recipe.method.name in when.methods)
        and (not when.purposes or recipe.task in when.purposes)
        and (not when.kinds or kind in when.kinds)
        and (not when.families or any(family.startswith(name.lower()) for name in when.families))
        and (not when.goals or not goals_of(recipe).isdisjoint(when.goals))
        and (not when.presets or "balanced" in when.presets)
        and (when.parameters_below is None or size < when.parameters_below)
        and (when.parameters_from is None or size >= when.parameters_from)
        and (when.rows_below is None or rows < when.rows_below)
        and (when.rows_from is None or rows >= when.rows_from)
    )


def goals_of(recipe: Recipe) -> set[str]:
    """What a recipe is after, as the table of settings names it."""
    scratch, pairs = recipe.model.from_scratch is not None, recipe.preference is not None
    return {name for name, holds in (("from-scratch", scratch), ("preference", pairs)) if holds}
