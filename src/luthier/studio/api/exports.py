"""/api/v1/exports: what runs have written, what more they could write, and the files themselves."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import FileResponse

from luthier.schema.deployment import Target
from luthier.studio.services import deploying
from luthier.studio.services.exports import export_view, exported, file_of, start_export
from luthier.studio.services.jobs import view
from luthier.studio.services.runs import find
from luthier.studio.web import settings_of

router = APIRouter(tags=["exports"])
REFUSED: dict[int | str, dict[str, Any]] = {404: {}, 409: {}, 503: {}}


class AskedExport(BaseModel):
    """What a run should write."""

    model_config = ConfigDict(extra="forbid")
    run: str = Field(max_length=200)
    kinds: list[Annotated[str, Field(max_length=40)]] = Field(max_length=40)
    """``adapter``, ``merged``, ``onnx``, or types of GGUF as ``Q4_K_M``."""


@router.get("/exports")
def exports(request: Request) -> dict[str, Any]:
    """Every artifact of every run."""
    found = exported(settings_of(request).runs)
    return {
        "exports": [
            {"run": run.id, **one.artifact.model_dump(mode="json"), "files": [asdict(f) for f in one.files]}
            for run, one in found
        ]
    }


@router.post("/exports", status_code=202, responses=REFUSED)
def begin(request: Request, asked: AskedExport) -> dict[str, Any]:
    """Enter an export into the queue; refused where it has no room or cannot be."""
    settings = settings_of(request)
    return view(start_export(settings, find(settings, asked.run), asked.kinds))


@router.get("/exports/{run_id}", responses=REFUSED)
def export(request: Request, run_id: str) -> dict[str, Any]:
    """One run: what it could write with the bytes that takes, free space, and steps of the last export."""
    settings = settings_of(request)
    found = export_view(settings, find(settings, run_id))
    return {
        "run": found.run.id,
        "state": found.state,
        "free": found.free,
        "scratch": found.scratch,
        "options": [
            {
                "kind": o.key,
                "label": o.label,
                "bytes": o.bytes,
                "there": o.there is not None,
                "refused": o.refused,
            }
            for o in found.options
        ],
        "steps": [asdict(step) for step in found.steps],
        "exporting": found.exporting,
        "failure": found.failure or None,
    }


class AskedDeployment(BaseModel):
    """A run made ready for a runtime."""

    model_config = ConfigDict(extra="forbid")
    target: Target


@router.post("/exports/{run_id}/deployments", status_code=202, responses=REFUSED)
def deploy(request: Request, run_id: str, asked: AskedDeployment) -> dict[str, Any]:
    """Begin ``luthier deploy``; a GET of the same address says how it stands."""
    settings = settings_of(request)
    return asdict(deploying.start(settings, find(settings, run_id), asked.target))


@router.get("/exports/{run_id}/deployments", responses=REFUSED)
def deployments(request: Request, run_id: str) -> dict[str, Any]:
    """What was asked for of this run here, and how it stands."""
    settings = settings_of(request)
    return {"deployments": [asdict(one) for one in deploying.of_run(settings, find(settings, run_id))]}


@router.get("/exports/{run_id}/files/{path:path}", responses=REFUSED)
def fetch(request: Request, run_id: str, path: str) -> FileResponse:
    """A file, or parts of it by Range."""
    found = file_of(find(settings_of(request), run_id), path)
    return FileResponse(found, filename=found.name, media_type="application/octet-stream")
