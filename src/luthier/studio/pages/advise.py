"""Advise: the recommendation as a guided form, with its reasons, what was left out, and the way to a plan."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from luthier.errors import LuthierError
from luthier.planning.recommend.claims import WORDS as METHOD_WORDS
from luthier.planning.recommend.claims import measured_how, method_claims
from luthier.planning.recommend.words import options_of
from luthier.studio.services import advising, datasets, models
from luthier.studio.system import hardware
from luthier.studio.web import render, settings_of

router = APIRouter()

WORDS: dict[str, dict[str, str]] = {
    "goal": {"behaviour": "behaviour, tone or format", "domain": "knowledge of a domain",
             "new-language": "a new language", "from-scratch": "everything, from scratch"},
    "stage": {"first-run": "a first run", "production": "production", "research": "research"},
    "priority": {"balanced": "balanced", "quality": "quality", "speed": "speed", "size": "small size",
                 "ecosystem": "wide use"},
    "use": {"commercial": "commercial", "research": "research", "internal": "internal"},
    "size": {"under-1b": "under 1 B", "edge": "edge, to about 4 B", "general": "general, to 9 B",
             "expert": "expert, 10 B to 36 B"},
    "licence": {"apache-2.0": "Apache 2.0", "mit": "MIT", "osi": "OSI approved",
                "commercial": "commercial use", "no-acceptable-use-policy": "no use policy",
                "may-train-others": "outputs may train others"},
    "feature": {"tools": "tool calls", "thinking": "thinking", "json": "JSON answers", "image": "images"},
    "method": {"full": "full", "lora": "LoRA", "qlora": "QLoRA"},
    "preset": {"quick": "quick", "balanced": "balanced", "best": "best"},
}  # fmt: skip
METHODS = {"qlora": "QLoRA", "lora": "LoRA", "full": "Full"}
MANY = ("licence", "feature")
FLAGS = ("eu", "outputs_train_models", "redistribute", "gguf", "offline")
SHOWN = 10


@router.get("/advise")
def advise(request: Request) -> Response:
    """The form and, once something is asked, the ranking. All of it stands in the URL."""
    settings = settings_of(request)
    query = request.query_params
    here = hardware(settings.runs)
    values: dict[str, Any] = {
        key: query.getlist(key) if key in MANY else value for key, value in query.items() if key != "all"
    }
    problem: LuthierError | None = None
    form, plan, asked = advising.Form(), None, False
    try:
        form = advising.form_of(values)
        asked = form.asked
        if asked:
            plan = advising.advise(
                form, uploads=settings.uploads, here=here, most=None if "all" in query else SHOWN
            )
    except LuthierError as error:
        problem = error
    known = datasets.shelf(settings.uploads)
    return render(
        request,
        "advise.html",
        {
            "form": form,
            "given": values,
            "plan": plan,
            "problem": problem,
            "words": WORDS,
            "choices": advising.choices(),
            "sets": known,
            "methods": METHODS,
            "families": models.families(),
            "here": here.accelerators[0].name if here.accelerators else here.processor.name,
            "groups": advising.rejected_by_reason(plan) if plan is not None else [],
            "urls": [advising.plan_url(one, form, plan.request) for one in plan.candidates] if plan else [],
            "command": f"luthier recommend {options_of(plan.request)}" if plan is not None else "",
            "notice": advising.NOT_ADVICE,
            "claims": method_claims() if plan is not None and plan.guides else (),
            "measured_how": measured_how(),
            "method_words": METHOD_WORDS,
            "more_url": f"{request.url.path}?{query}&all=1",
        },
        page="advise",
    )
