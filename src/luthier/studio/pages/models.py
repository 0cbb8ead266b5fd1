"""Models: the catalogue with what fits here, and one model in full."""

from __future__ import annotations

from typing import Annotated, Any, get_args
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from luthier.catalog.index import all_models
from luthier.errors import LuthierError
from luthier.schema.recipe import Purpose
from luthier.studio.services import models
from luthier.studio.services.planning import described
from luthier.studio.system import hardware
from luthier.studio.web import render, settings_of

router = APIRouter()

Words = Annotated[str, Query(max_length=200)]
METHODS = {"qlora": "QLoRA", "lora": "LoRA", "full": "Full"}


@router.get("/models")
def listed(  # noqa: PLR0917 (the filter's own fields, once each)
    request: Request,
    q: Words = "",
    family: Words = "",
    purpose: Words = "",
    fits: Words = "",
    licence: Words = "",
    disk: str = "",
    sort: Words = "params",
    hardware_words: Annotated[str, Query(alias="hardware", max_length=200)] = "",
) -> Response:
    """Every base model that meets the filter, with the memory of the lightest method and whether it fits."""
    settings = settings_of(request)
    here = hardware(settings.runs)
    problem: LuthierError | None = None
    machine, rows = here, list[models.Row]()
    wanted = models.Filter(
        q=q, family=family, purpose=purpose, fits=fits, licence=licence, disk=bool(disk), sort=sort,
        hardware=hardware_words,
    )  # fmt: skip
    try:
        machine = described(hardware_words) if hardware_words.strip() else here
        rows = models.listed(wanted, machine)
    except LuthierError as error:
        problem = error
    fields = {"q": q, "family": family, "purpose": purpose, "fits": fits, "licence": licence, "disk": disk,
              "hardware": hardware_words}  # fmt: skip
    kept = {key: value for key, value in fields.items() if value}

    def sorted_by(name: str) -> str:
        return f"/models?{urlencode({**kept, 'sort': name})}"

    return render(
        request,
        "models.html",
        {
            "rows": rows,
            "total": len(all_models()),
            "wanted": wanted,
            "problem": problem,
            "families": models.families(),
            "licences": models.licences_used(),
            "purposes": get_args(Purpose),
            "methods": METHODS,
            "sorted_by": sorted_by,
            "machine": machine.accelerators[0].name if machine.accelerators else machine.processor.name,
            "on_hardware": urlencode({"hardware": hardware_words}) if hardware_words.strip() else "",
            "downloads": [one for one in models.downloads(settings.home) if one.state == "running"],
        },
        page="models",
    )


@router.get("/models/{name:path}")
def one(
    request: Request,
    name: str,
    hardware_words: Annotated[str, Query(alias="hardware", max_length=200)] = "",
) -> Response:
    """One model: memory by method and part, licence and its duties, template, files, download."""
    settings = settings_of(request)
    machine = described(hardware_words) if hardware_words.strip() else hardware(settings.runs)
    found = models.detail(name, machine, settings.home)
    card = found.card
    plan: dict[str, Any] = {"model": card.id}
    if found.revision is not None:
        plan["revision"] = found.revision
    if hardware_words.strip():
        plan["hardware"] = hardware_words
    return render(
        request,
        "model.html",
        {
            "found": found,
            "card": card,
            "terms": found.terms,
            "methods": METHODS,
            "machine": machine.accelerators[0].name if machine.accelerators else machine.processor.name,
            "plan_url": f"/runs/new?{urlencode(plan)}",
            "bytes": sum(file.bytes for file in found.files),
        },
        page="models",
    )
