"""Exports: what was written, what could be, and every file to fetch."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, RedirectResponse, Response

from luthier.errors import LuthierError
from luthier.runs.deploying import list_deployments
from luthier.runs.directory import RunDirectory
from luthier.studio.problems import status_of
from luthier.studio.services import deploying
from luthier.studio.services.exports import (
    export_view,
    exportable,
    exported,
    file_of,
    start_export,
)
from luthier.studio.services.forms import Sent
from luthier.studio.services.runs import find, headings
from luthier.studio.web import render, settings_of

router = APIRouter()


@router.get("/exports")
def exports(request: Request) -> Response:
    """Every artifact of every run, and the runs that could write more."""
    runs = settings_of(request).runs
    values = {
        "found": exported(runs),
        "runs": [(run.id, headings(run).model) for run in exportable(runs)],
        "deployments": list_deployments(),
    }
    return render(request, "exports.html", values, page="exports")


@router.get("/exports/{name}")
def export(request: Request, name: str) -> Response:
    """One run: files, what more it could write, and the steps of what is being written."""
    return _page(request, find(settings_of(request), name))


def _page(
    request: Request, run: RunDirectory, *, chosen: tuple[str, ...] = (), error: LuthierError | None = None
) -> Response:
    values: dict[str, Any] = {
        "view": export_view(settings_of(request), run),
        "recipe": run.recipe,
        "chosen": chosen,
        "error": error,
        "deployments": [one for one in list_deployments() if one.run == run.id],
        "targets": deploying.ABOUT,
        "deploying": deploying.of_run(settings_of(request), run),
    }
    return render(request, "export.html", values, page="exports", status=status_of(error) if error else 200)


@router.post("/exports/{name}")
async def begin(request: Request, name: str, form: Sent) -> Response:
    """Start an export."""
    run = find(settings_of(request), name)
    kinds = form.all("kind")
    try:
        await asyncio.to_thread(start_export, settings_of(request), run, kinds)
    except LuthierError as error:
        return await asyncio.to_thread(_page, request, run, chosen=tuple(kinds), error=error)
    return RedirectResponse(f"/exports/{run.id}", 303)


@router.post("/exports/{name}/deploy")
async def deploy(request: Request, name: str, form: Sent) -> Response:
    """Make the run ready for a runtime."""
    settings = settings_of(request)
    run = find(settings, name)
    try:
        target = deploying.target_named(form.one("target"))
        await asyncio.to_thread(deploying.start, settings, run, target)
    except LuthierError as error:
        return await asyncio.to_thread(_page, request, run, error=error)
    return RedirectResponse(f"/exports/{run.id}#use", 303)


@router.get("/exports/{name}/files/{path:path}")
def fetch(request: Request, name: str, path: str) -> Response:
    """A file; parts of it by Range."""
    found: Path = file_of(find(settings_of(request), name), path)
    return FileResponse(found, filename=found.name, media_type="application/octet-stream")
