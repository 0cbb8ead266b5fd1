"""New run: a form whose every change re-prices memory, time and cost. All of it stands in the URL."""

from __future__ import annotations

import math
from typing import Any, get_args
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.datastructures import QueryParams
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from luthier.catalog.index import all_models
from luthier.errors import LuthierError, UsageError
from luthier.schema.recipe import Purpose
from luthier.studio.services import datasets, dryrun, models, planning
from luthier.studio.services.forms import form_of
from luthier.studio.system import hardware
from luthier.studio.web import render, settings_of

router = APIRouter()

ALIASES = {"dataset": "data", "from": "from_run"}
"""Shorter names that links use."""
PRESETS = {"quick": "Quick", "balanced": "Balanced", "best": "Best"}
METHODS = {"lora": "LoRA, adapters", "qlora": "QLoRA, base in 4 bits", "full": "Full, all weights"}
CHECKPOINTING = {"none": "nothing", "selective": "all but products (compiled)", "full": "whole layers",
                 "offload": "whole layers, inputs on the host"}  # fmt: skip
OVER = {"error": "stop the run", "truncate": "cut them", "drop": "leave them out"}
OPTIMIZERS = {"adamw": "AdamW", "adamw-8bit": "AdamW, 8 bits", "paged-adamw-8bit": "AdamW, 8 bits, paged",
              "adamw-bf16": "AdamW, bf16", "adamw-bf16-kahan": "AdamW, bf16, Kahan",
              "muon": "Muon"}  # fmt: skip
PATIENCE = 3
"""Evaluations without a better one after which a run from this page stops, unless it says otherwise."""
TRIAL = ("training.max_steps=3", "evaluation.max_rows=8", "evaluation.floor_rows=0",
         "evaluation.probe_rows=0", "export.merged=false", "export.gguf=[]")  # fmt: skip
"""Settings of a run that only shows that everything works."""


def wish_of(query: QueryParams) -> planning.Wish:
    """The wish that a URL holds. Errors: UsageError for a value that cannot be, with its field."""
    values: dict[str, Any] = {}
    for key in query:
        name = ALIASES.get(key, key)
        if name in ("dry", "try"):
            continue
        if name == "gguf":
            values[name] = tuple(one for one in query.getlist(key) if one)
        elif name == "settings":
            values[name] = tuple(line.strip() for line in query[key].splitlines() if line.strip())
        elif query[key].strip():
            values[name] = query[key].strip()
    if not query.get("patience") and "patience" not in query:
        values["patience"] = PATIENCE
    try:
        return planning.Wish.model_validate(values)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"][:1])
        raise UsageError(f"{where}: {fault['msg'][:1].lower()}{fault['msg'][1:]}") from None


@router.get("/runs/new")
def new_run(request: Request) -> Response:
    """The form and its price."""
    settings = settings_of(request)
    query = request.query_params
    here = hardware(settings.runs)
    try:
        wish = wish_of(query)
        asked = bool(wish.model) or wish.from_run is not None
        plan = planning.plan(wish, uploads=settings.uploads, here=here) if asked else planning.Plan(wish)
    except LuthierError as error:
        wish = planning.Wish()
        plan = planning.Plan(wish, problem=error.message, fix=error.hint)
        asked = True
    known = datasets.shelf(settings.uploads)
    dry = None
    if "dry" in query:
        try:
            dry = dryrun.find(settings.home, query["dry"])
        except LuthierError:
            dry = None
    recipe = None if plan.recipe is None else plan.recipe.model_dump(mode="json", exclude_none=True)
    elsewhere = bool(wish.hardware and wish.hardware.strip())
    return render(
        request,
        "new_run.html",
        {
            "wish": wish,
            "given": query,
            "patience": query.get("patience", str(PATIENCE)),
            "plan": plan,
            "asked": asked,
            "sets": known,
            "cards": all_models(),
            "disk": models.on_disk(),
            "purposes": get_args(Purpose),
            "presets": PRESETS,
            "methods": METHODS,
            "usual": planning.usual_method(wish.model) if wish.model else "lora",
            "checkpointing": CHECKPOINTING,
            "over": OVER,
            "optimizers": OPTIMIZERS,
            "here": here.accelerators[0].name if here.accelerators else here.processor.name,
            "derived": {key: (value, why) for key, value, why in plan.derived},
            "entered": lambda name: _number(query.get(name, "")),
            "value_at": lambda key: _shown(plan, key),
            "fix_url": lambda fix: _with(query, fix.values),
            "query": _kept(query),
            "recipe": recipe,
            "ready": _ready(plan, wish, elsewhere=elsewhere),
            "start": {"kind": "train", "recipe": recipe, "first": True},
            "wait": {"kind": "train", "recipe": recipe, "first": False},
            "trial": {"kind": "train", "recipe": recipe, "first": True,
                      "overrides": [*TRIAL, f"name={_trial_name(plan)}"]},
            "dry": dry,
        },
        page="new_run",
    )  # fmt: skip


def _ready(plan: planning.Plan, wish: planning.Wish, *, elsewhere: bool) -> str | None:
    """Why the run cannot be started as it stands; None where it can."""
    if plan.recipe is None or plan.resolved is None:
        return "The plan has to be mended first."
    if (
        wish.data is None
        and wish.from_run is None
        and not any("data.train" in line for line in wish.settings)
    ):
        return "Choose training data first."
    if elsewhere:
        return "This is priced for other hardware: take the recipe there, or empty the field Hardware."
    if not plan.fits:
        return "It does not fit here: take one of the changes above."
    return None


def _number(text: str) -> str:
    """What a field for numbers can show again."""
    try:
        return text if math.isfinite(float(text)) else ""
    except ValueError:
        return ""


def _shown(plan: planning.Plan, key: str) -> str:
    """A value of the resolved recipe, for the field that leaves it open."""
    if plan.resolved is None or not plan.fits:
        return "derived"
    found = planning.value_at(plan.resolved.recipe, key)
    return "derived" if found is None else f"{found:g}" if isinstance(found, (int, float)) else str(found)


def _trial_name(plan: planning.Plan) -> str:
    name = plan.resolved.recipe.name if plan.resolved is not None else None
    return f"{name or 'run'}-trial"


def _kept(query: QueryParams) -> str:
    """The URL's fields without those that only say what is looked at, as a query."""
    return urlencode([(key, value) for key, value in query.multi_items() if key != "dry" and value])


def _with(query: QueryParams, changed: dict[str, Any]) -> str:
    """The same page with fields changed."""
    kept = [(key, value) for key, value in query.multi_items()
            if ALIASES.get(key, key) not in changed and key != "dry" and value]  # fmt: skip
    return f"/runs/new?{urlencode([*kept, *changed.items()])}"


@router.get("/runs/new/recipe.yaml")
def recipe_file(request: Request) -> Response:
    """The recipe of a URL as a file."""
    settings = settings_of(request)
    wish = wish_of(request.query_params)
    recipe = planning.recipe_of(wish, settings.uploads)
    name = (recipe.name or "recipe").encode("ascii", "ignore").decode() or "recipe"
    safe = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
    return PlainTextResponse(
        planning.recipe_text(recipe),
        media_type="application/yaml",
        headers={"content-disposition": f'attachment; filename="{safe}.yaml"'},
    )


@router.post("/runs/new/dry")
async def dry_run(request: Request) -> Response:
    """Start a dry run of what the form holds, and come back."""
    form = await form_of(request)
    settings = settings_of(request)
    query = QueryParams(form.one("query"))
    plan = planning.plan(wish_of(query), uploads=settings.uploads, here=hardware(settings.runs))
    if plan.recipe is None:
        raise UsageError(plan.problem or "there is no plan", hint=plan.fix)
    found = dryrun.start(settings.home, plan.recipe.model_dump(mode="json", exclude_none=True))
    return RedirectResponse(f"/runs/new?{urlencode([*query.multi_items(), ('dry', found.id)])}#dry", 303)
