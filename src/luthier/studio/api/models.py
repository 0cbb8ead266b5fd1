"""The catalogue, models on this machine, and their downloads."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from luthier.catalog.index import model_card
from luthier.studio.services import models
from luthier.studio.services.planning import described
from luthier.studio.system import hardware
from luthier.studio.web import settings_of

router = APIRouter(tags=["models"])

Words = Annotated[str, Query(max_length=200)]


@router.get("/models")
def listed(  # noqa: PLR0917 (the filter's own fields, once each)
    request: Request,
    q: Words = "",
    family: Words = "",
    purpose: Words = "",
    fits: Words = "",
    licence: Words = "",
    disk: bool = False,
    sort: Words = "params",
    hardware_words: Annotated[str, Query(alias="hardware", max_length=200)] = "",
) -> dict[str, Any]:
    """Base models that meet every condition, with the memory of the lightest method here."""
    machine = described(hardware_words) if hardware_words.strip() else hardware(settings_of(request).runs)
    wanted = models.Filter(
        q=q, family=family, purpose=purpose, fits=fits, licence=licence, disk=disk, sort=sort
    )
    return {
        "models": [
            {
                "id": row.card.id,
                "family": row.card.family,
                "kind": row.card.kind,
                "parameters": row.card.total,
                "context": row.card.context.native,
                "licence": row.card.licence,
                "purposes": list(row.card.purposes),
                "on_disk": row.on_disk,
                "method": row.need.method,
                "bytes_needed": row.need.bytes,
                "fits": row.need.fits,
            }
            for row in models.listed(wanted, machine)
        ],
        "downloads": [asdict(one) for one in models.downloads(settings_of(request).home)],
    }


class Wanted(BaseModel):
    """Which revision to fetch."""

    model_config = ConfigDict(extra="forbid")
    revision: str | None = Field(None, max_length=200)


@router.get("/models/{name:path}/download")
def download_state(request: Request, name: str) -> dict[str, Any]:
    """How far a download is."""
    found = models.download_of(settings_of(request).home, name)
    return {"download": None if found is None else asdict(found)}


@router.post("/models/{name:path}/download", status_code=202)
def download(request: Request, name: str, asked: Wanted) -> dict[str, Any]:
    """Fetch a model in a process that outlives the studio; it goes on from what has arrived."""
    return asdict(models.start_download(settings_of(request).home, name, asked.revision))


@router.get("/models/{name:path}")
def one(request: Request, name: str) -> dict[str, Any]:
    """All that is known of one model, with the memory of each method here."""
    machine = hardware(settings_of(request).runs)
    card = model_card(name)
    return {
        "model": card.model_dump(mode="json", exclude_none=True),
        "on_disk": bool(models.on_disk() & models.names_of(card)),
        "methods": [
            {**asdict(one.need), "parts": dict(one.parts), "trainable": one.trainable}
            for one in models.by_method(card, machine)
        ],
    }


@router.delete("/models/{name:path}")
def delete(name: str) -> dict[str, int]:
    """Remove a model's weights from this machine."""
    return {"freed": models.delete(name)}
