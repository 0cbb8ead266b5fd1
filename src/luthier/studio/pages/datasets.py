"""Datasets: upload, and one data set with its rows, mapping, checks, lengths and tokens."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from fastapi import APIRouter, Query, Request
from starlette.responses import RedirectResponse, Response

from luthier.catalog.index import all_models
from luthier.data.sources import FORMATS
from luthier.errors import LuthierError
from luthier.schema.recipe import TrainOn
from luthier.studio.api.datasets import roots_of, uploads_of
from luthier.studio.services import datasets, inspection, models
from luthier.studio.services.forms import form_of
from luthier.studio.web import render, settings_of

router = APIRouter()

TABS = (("preview", "Rows"), ("mapping", "Mapping"), ("checks", "Checks"), ("lengths", "Lengths"),
        ("tokens", "Tokens by mask"))  # fmt: skip
TRAIN_ON = {
    "assistant": "every answer",
    "last": "the last answer",
    "completion": "the answer to the last question",
    "all": "everything",
}


@router.get("/datasets")
def listed(request: Request) -> Response:
    """All data sets, and where a file is dropped."""
    settings = settings_of(request)
    known = datasets.shelf(settings.uploads)
    used = datasets.used_by(known, settings.runs)
    seen = {one.id: inspection.any_found(settings.uploads, one) for one in known}
    return render(
        request,
        "datasets.html",
        {
            "sets": known,
            "used": used,
            "seen": seen,
            "looking": any(found is None and inspection.running(settings.uploads, one)
                           for one, found in ((one, seen[one.id]) for one in known)),
            "waiting": uploads_of(request).waiting(),
            "roots": roots_of(request),
            "suffixes": ",".join((*FORMATS, ".gz", ".zst")),
        },
        page="datasets",
    )  # fmt: skip


Words = Annotated[str | None, Query(max_length=300)]


@router.get("/datasets/{dataset_id}")
def one(
    request: Request,
    dataset_id: str,
    tab: Annotated[str, Query(max_length=16)] = "preview",
    page: Annotated[int, Query(ge=1, le=datasets.PAGES)] = 1,
    model: Words = None,
) -> Response:
    """One data set; the tab, the page and the model that reads it stand in the URL."""
    settings = settings_of(request)
    known = datasets.dataset(settings.uploads, dataset_id)
    tab = tab if tab in dict(TABS) else "preview"
    revision = models.revision_to_take(model) if model else None
    if tab in ("checks", "lengths", "tokens"):
        inspection.ensure(settings.uploads, known, model or None, revision)
    elif inspection.any_found(settings.uploads, known) is None:
        inspection.ensure(settings.uploads, known)
    found = inspection.found(settings.uploads, known, model or None)
    context: dict[str, Any] = {
        "known": known,
        "tab": tab,
        "tabs": TABS,
        "model": model or "",
        "found": found,
        "running": inspection.running(settings.uploads, known, model or None),
        "seen": found or inspection.any_found(settings.uploads, known),
        "here": _tokenizers(),
        "others": [one for one in datasets.shelf(settings.uploads) if one.id != known.id],
        "used": datasets.used_by([known], settings.runs)[known.id],
        "purposes": datasets.PURPOSES,
        "formats": datasets.FORMATS,
        "train_on": TRAIN_ON,
        "problem": None,
    }
    try:
        if tab == "preview":
            context["rows"] = datasets.preview(known, page)
        if tab == "mapping":
            context |= _mapping(request, known)
    except LuthierError as error:
        context["problem"] = error
    return render(request, "dataset.html", context, page="datasets")


def _tokenizers() -> list[tuple[str, str]]:
    """(id, name) of the models on this machine: any of them can count tokens."""
    here = models.on_disk()
    return sorted((card.id, card.name) for card in all_models() if models.names_of(card) & here)


def _mapping(request: Request, known: datasets.Dataset) -> dict[str, Any]:
    """The mapping as it is saved or, with ``try`` in the URL, as the form has it, which keeps nothing."""
    query = request.query_params
    tried = known
    if "try" in query:
        tried = datasets.remap(known, _values(dict(query)))
    return {"tried": tried, "mapping": datasets.mapping(tried), "changed": tried != known}


def _values(fields: dict[str, str]) -> dict[str, Any]:
    """What a form says of reading rows."""
    values: dict[str, Any] = {
        key: fields[key]
        for key in ("name", "purpose", "format", "system", "label_delimiter", "held_out")
        if key in fields
    }
    if fields.get("train_on") in get_args(TrainOn):
        values["train_on"] = fields["train_on"]
    values["columns"] = {
        key.removeprefix("role-"): text[:2_000] for key, text in fields.items() if key.startswith("role-")
    }
    return values


@router.post("/datasets/{dataset_id}/mapping")
async def remap(request: Request, dataset_id: str) -> Response:
    """Keep a mapping, and look at the rows anew."""
    form = await form_of(request)
    folder = settings_of(request).uploads
    known = datasets.dataset(folder, dataset_id)
    changed = datasets.remap(known, _values({key: form.one(key) for key in form.fields}))
    datasets.save(folder, changed)
    inspection.ensure(folder, changed)
    return RedirectResponse(f"/datasets/{dataset_id}?tab=mapping", 303)
