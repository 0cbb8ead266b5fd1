"""POST /api/v1/plan and /recommend: pure, nothing is loaded."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from luthier.studio.services import advising, planning
from luthier.studio.system import hardware
from luthier.studio.web import settings_of

router = APIRouter(tags=["plan"])


@router.post("/plan")
def plan(request: Request, wish: planning.Wish) -> dict[str, Any]:
    """Memory by part, time, cost and what each change would save, for a wish; in milliseconds."""
    settings = settings_of(request)
    return as_values(planning.plan(wish, uploads=settings.uploads, here=hardware(settings.runs)))


def as_values(found: planning.Plan) -> dict[str, Any]:
    """A plan as plain values."""

    def band(one: Any) -> Any:
        return None if one is None else one.model_dump()

    return {
        "fits": found.fits,
        "problem": found.problem,
        "fix": found.fix,
        "device": found.device,
        "machine": found.machine,
        "budget": found.budget,
        "memory": band(found.memory),
        "parts": dict(found.parts),
        "seconds": band(found.training),
        "judging_seconds": band(found.judging),
        "cost": band(found.cost),
        "priced": found.priced,
        "steps": found.resolved.steps if found.resolved is not None else None,
        "tokens": found.resolved.tokens if found.resolved is not None else None,
        "rows": found.rows,
        "disk_bytes": found.resolved.disk_bytes if found.resolved is not None else None,
        "warnings": list(found.warnings),
        "assumed": list(found.assumed),
        "duties": list(found.duties),
        "fixes": [
            {"words": one.words, "saves": one.saves, "helps": one.helps, "values": one.values}
            for one in found.fixes
        ],
        "derived": [{"key": key, "value": value, "why": why} for key, value, why in found.derived],
        "recipe": None if found.recipe is None else found.recipe.model_dump(mode="json", exclude_none=True),
        "yaml": found.yaml,
        "milliseconds": found.milliseconds,
    }


class Asked(BaseModel):
    """What to recommend for: the options of ``luthier recommend``, by their names in the form."""

    model_config = ConfigDict(extra="forbid")
    request: dict[str, str | int | float | bool | list[str] | None] = Field(default_factory=dict)
    most: int = Field(10, ge=1, le=100)


@router.post("/recommend")
def recommend(request: Request, asked: Asked) -> dict[str, Any]:
    """Ranked pairs of model and method with reasons, and what was left out and why."""
    settings = settings_of(request)
    form = advising.form_of(asked.request)
    found = advising.advise(form, uploads=settings.uploads, here=hardware(settings.runs), most=asked.most)
    return {"plan": found.model_dump(mode="json", exclude_none=True), "notice": advising.NOT_ADVICE}
