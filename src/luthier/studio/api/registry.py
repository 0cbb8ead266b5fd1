"""/api/v1/registry: tuned models by name, version and alias."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from luthier.errors import UsageError
from luthier.runs import registry as store
from luthier.studio.services.registering import ModelView, model, models, version
from luthier.studio.services.runs import find
from luthier.studio.web import settings_of

router = APIRouter(tags=["registry"])
REFUSED: dict[int | str, dict[str, Any]] = {404: {}, 409: {}}
LARGEST = 1_000_000_000


class AskedVersion(BaseModel):
    """A run to register."""

    model_config = ConfigDict(extra="forbid")
    run: str = Field(max_length=200)
    name: str | None = Field(None, max_length=80)
    note: str = Field("", max_length=500)


class AskedAlias(BaseModel):
    """What an alias should name."""

    model_config = ConfigDict(extra="forbid")
    deed: Literal["promote", "rollback", "drop"] = "promote"
    version: int | None = Field(None, ge=1, le=LARGEST)
    """promote: which version."""


def as_values(found: ModelView) -> dict[str, Any]:
    """A registered name as plain values."""
    return {
        "name": found.name,
        "aliases": found.aliases,
        "versions": [one.version.model_dump(mode="json", exclude={"path"}) for one in found.versions],
        "history": [change.model_dump(mode="json") for change in found.history],
    }


@router.get("/registry")
def listed() -> dict[str, Any]:
    """Every registered name."""
    return {"models": [as_values(one) for one in models()]}


@router.post("/registry", status_code=201, responses=REFUSED)
def add(request: Request, asked: AskedVersion) -> dict[str, Any]:
    """Register a run as the next version of a name."""
    run = find(settings_of(request), asked.run)
    made = store.add(run, name=asked.name, note=asked.note)
    return made.model_dump(mode="json", exclude={"path"})


@router.get("/registry/{name}", responses=REFUSED)
def one(name: str) -> dict[str, Any]:
    """One name with its versions and the history of its aliases."""
    return as_values(model(name))


@router.put("/registry/{name}/aliases/{alias}", responses=REFUSED)
def change(name: str, alias: str, asked: AskedAlias) -> dict[str, Any]:
    """Promote a version, roll the alias back, or drop it."""
    model(name)
    if asked.deed == "promote":
        if asked.version is None:
            raise UsageError("which version?", hint="give version")
        made = store.promote(f"{name}:{version(name, asked.version).version}", alias)
    else:
        made = (store.rollback if asked.deed == "rollback" else store.drop_alias)(name, alias)
    return made.model_dump(mode="json")


@router.get("/registry/{name}/diff/{first}/{second}", responses=REFUSED)
def diff(name: str, first: int, second: int) -> dict[str, Any]:
    """What differs between two versions."""
    if not (0 < first < LARGEST and 0 < second < LARGEST):
        raise UsageError("versions are whole numbers from 1 on")
    model(name)
    found = store.differences(version(name, first), version(name, second))
    return {"differences": {key: {"first": a, "second": b} for key, (a, b) in found.items()}}
