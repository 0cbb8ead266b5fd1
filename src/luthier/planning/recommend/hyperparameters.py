"""Look settings up in the catalogue's one table."""

from __future__ import annotations

from luthier.catalog.index import index
from luthier.schema.hyperparameter import Condition, Hyperparameter, Preset
from luthier.schema.model import ModelCard
from luthier.schema.plan import Setting
from luthier.schema.request import MethodName, Request

BASIS = {
    "documented": "",
    "claimed": "claimed by a guide: ",
    "measured": "measured: ",
    "convention": "convention: ",
}


def lookup(
    card: ModelCard, method: MethodName, request: Request, *, preset: Preset = "balanced"
) -> tuple[Setting, ...]:
    """One setting for each name of the table whose condition holds, in the table's order."""
    found: dict[str, Setting] = {}
    for row in index().hyperparameters:
        if row.name not in found and _holds(row.when, card, method, request, preset):
            found[row.name] = _setting(row)
    if (alpha := found.get("alpha")) is not None and alpha.value == "2r":
        doubled = 2 * float(found["rank"].value)
        found["alpha"] = alpha.model_copy(update={"value": doubled})
    if request.epochs is not None:
        found["epochs"] = Setting(name="epochs", value=request.epochs, source="asked for")
    return tuple(found.values())


def value_of(settings: tuple[Setting, ...], name: str) -> Setting | None:
    """The setting of that name, if there is one."""
    return next((s for s in settings if s.name == name), None)


def _setting(row: Hyperparameter) -> Setting:
    value = int(row.value) if isinstance(row.value, float) and row.name in WHOLE else row.value
    return Setting(name=row.name, value=value, source=BASIS[row.basis] + row.source)


WHOLE = ("rank", "batch_size")


def _holds(when: Condition, card: ModelCard, method: MethodName, request: Request, preset: Preset) -> bool:
    rows, size = request.rows or 1_000, card.total or 0
    return (
        (not when.methods or method in when.methods)
        and (not when.purposes or request.purpose in when.purposes)
        and (not when.kinds or card.kind in when.kinds)
        and (not when.families or card.family.startswith(when.families))
        and (not when.goals or request.goal in when.goals)
        and (not when.presets or preset in when.presets)
        and (when.parameters_below is None or size < when.parameters_below)
        and (when.parameters_from is None or size >= when.parameters_from)
        and (when.rows_below is None or rows < when.rows_below)
        and (when.rows_from is None or rows >= when.rows_from)
    )
