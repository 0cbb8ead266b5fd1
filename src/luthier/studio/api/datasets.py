"""Uploads and data sets: PUT /uploads/{name}, /datasets and what is found in them."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from luthier.studio.problems import problem
from luthier.studio.services import datasets, inspection
from luthier.studio.services.uploads import Received, UploadRefused, Uploads, as_values, read_span
from luthier.studio.web import settings_of

router = APIRouter(tags=["datasets"])


def uploads_of(request: Request) -> Uploads:
    """The files on their way into this studio: one keeper for the process, which knows who is sending."""
    state = request.app.state
    if not hasattr(state, "uploads"):
        state.uploads = Uploads(settings_of(request).uploads)
    found = state.uploads
    assert isinstance(found, Uploads)
    return found


def roots_of(request: Request) -> tuple[Path, ...]:
    """Folders from which data files may be named: those it was started with, and the working folder."""
    return (*settings_of(request).data_roots, Path.cwd())


TASTE = 1 << 20
"""Bytes of a refused upload that are read, so that its sender hears why."""
_REFUSALS: dict[int | str, dict[str, Any]] = {
    200: {"description": "all of it is here"},
    202: {"description": "a part is here"},
    400: {"description": "a range, name or length that cannot be"},
    409: {"description": "another offset is expected: `received` says which"},
    411: {"description": "nothing says how long the file is"},
    413: {"description": "larger than a file may be"},
    415: {"description": "not a kind of file that holds rows, or not the kind that its name says"},
    507: {"description": "not enough space on the disk"},
}


@router.put(
    "/uploads/{name}",
    responses={
        **_REFUSALS,
        200: {"description": "all of it is here"},
        202: {"description": "a part is here"},
    },
    openapi_extra={
        "requestBody": {
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        }
    },
)
async def upload(
    request: Request,
    name: str,
    content_range: Annotated[str | None, Header(max_length=200)] = None,
    upload_mark: Annotated[str, Header(max_length=200)] = "",
) -> Response:
    """Send a file, whole or from where an earlier transfer ended.

    ``Content-Range: bytes FIRST-LAST/TOTAL`` continues, ``bytes */TOTAL`` asks what is here; ``Upload-Mark``
    tells files of one name and size apart (browsers send the file's date). With the last byte the file
    becomes a data set, whose ``id`` is answered.
    """
    keeper = uploads_of(request)
    folder = settings_of(request).uploads
    try:
        span = read_span(content_range, request.headers.get("content-length"))
        found = await keeper.receive(name, span, upload_mark, request.stream())
    except UploadRefused as refused:
        more: dict[str, Any] = {}
        if refused.status == 409:
            more["received"] = keeper.state(name, span.total, upload_mark).bytes
        # A body that is not wanted is not read to its end: the connection ends with the answer. Most senders
        # only look for one once they have sent a little, so that much is taken from them.
        await _taste(request)
        return problem(refused.status, refused.code, refused.message, refused.hint,
                       headers={"connection": "close"}, **more)  # fmt: skip
    if found.path is None:
        return JSONResponse({**as_values(found), "id": None}, 202)
    made = await run_in_threadpool(_taken, folder, found)
    return JSONResponse({**as_values(found), "id": made.id})


async def _taste(request: Request) -> None:
    """Read the beginning of a body that is not wanted, for at most a second."""
    left = TASTE
    with contextlib.suppress(TimeoutError, RuntimeError, ClientDisconnect):
        async with asyncio.timeout(1):
            async for chunk in request.stream():
                left -= len(chunk)
                if left <= 0:
                    return


def _taken(folder: Path, found: Received) -> datasets.Dataset:
    made = datasets.take(folder, found)
    inspection.ensure(folder, made)
    return made


@router.delete("/uploads/{name}", status_code=204)
def forget(
    request: Request,
    name: str,
    total: Annotated[int, Query(ge=0)],
    mark: Annotated[str, Query(max_length=200)] = "",
) -> None:
    """Forget what has arrived of a file."""
    uploads_of(request).drop(name, total, mark)


class LocalFile(BaseModel):
    """A data file that stays where it lies."""

    model_config = ConfigDict(extra="forbid")
    path: str = Field(min_length=1, max_length=4096)


@router.get("/datasets")
def listed(request: Request) -> dict[str, Any]:
    """All data sets, newest first."""
    settings = settings_of(request)
    known = datasets.shelf(settings.uploads)
    used = datasets.used_by(known, settings.runs)
    return {"datasets": [{**one.model_dump(mode="json"), "used_by": used[one.id]} for one in known]}


@router.post("/datasets", status_code=201)
def name_local(request: Request, asked: LocalFile) -> dict[str, Any]:
    """Make a data set of a file on this machine, under a folder that the studio may read."""
    folder = settings_of(request).uploads
    made = datasets.name_local(folder, asked.path, roots_of(request))
    inspection.ensure(folder, made)
    return made.model_dump(mode="json")


@router.get("/datasets/{dataset_id}")
def one(request: Request, dataset_id: str) -> dict[str, Any]:
    """One data set, and what was found in it."""
    folder = settings_of(request).uploads
    known = datasets.dataset(folder, dataset_id)
    seen = inspection.any_found(folder, known)
    return {**known.model_dump(mode="json"), "found": None if seen is None else seen.model_dump(mode="json")}


@router.delete("/datasets/{dataset_id}")
def remove(request: Request, dataset_id: str) -> dict[str, int]:
    """Remove a data set; a file that was uploaded goes with it."""
    return {"freed": datasets.remove(settings_of(request).uploads, dataset_id)}


@router.get("/datasets/{dataset_id}/rows")
def rows(
    request: Request, dataset_id: str, page: Annotated[int, Query(ge=1, le=datasets.PAGES)] = 1
) -> dict[str, Any]:
    """Fifty rows as the file holds them."""
    found = datasets.preview(datasets.dataset(settings_of(request).uploads, dataset_id), page)
    return {
        "page": found.number,
        "more": found.more,
        "columns": found.columns,
        "rows": [{"line": row.line, "values": row.cells, "problem": row.problem} for row in found.rows],
    }


class MappingChoice(BaseModel):
    """How rows are read; what is left out stays, what is empty is detected."""

    model_config = ConfigDict(extra="forbid")
    name: str | None = Field(None, max_length=200)
    purpose: str | None = Field(None, max_length=64)
    format: str | None = Field(None, max_length=64)
    columns: dict[str, str] | None = None
    system: str | None = Field(None, max_length=20_000)
    label_delimiter: str | None = Field(None, max_length=8)
    train_on: str | None = Field(None, max_length=16)
    held_out: str | None = Field(None, max_length=64)


@router.put("/datasets/{dataset_id}/mapping")
def remap(request: Request, dataset_id: str, asked: MappingChoice) -> dict[str, Any]:
    """Read a data set another way. What does not map is said in ``mapping.problem`` and kept all the same."""
    folder = settings_of(request).uploads
    changed = datasets.remap(datasets.dataset(folder, dataset_id), asked.model_dump())
    if changed.held_out is not None:
        datasets.dataset(folder, changed.held_out)
    datasets.save(folder, changed)
    inspection.ensure(folder, changed)
    told = datasets.mapping(changed)
    return {
        **changed.model_dump(mode="json"),
        "mapping": {"read_as": told.read_as, "problem": told.problem, "fix": told.fix,
                    "roles": {role: text for role, text, _ in told.roles if text}},
    }  # fmt: skip


class CheckChoice(BaseModel):
    """With which model's tokenizer and template."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = Field(None, max_length=300)
    revision: str | None = Field(None, max_length=200)


@router.post("/datasets/{dataset_id}/checks", status_code=202)
def check(request: Request, dataset_id: str, asked: CheckChoice) -> dict[str, Any]:
    """Look at all rows again in a child process; `GET /datasets/{dataset_id}/checks` has what it found."""
    folder = settings_of(request).uploads
    known = datasets.dataset(folder, dataset_id)
    inspection.start(folder, known, asked.model or None, asked.revision or None)
    return {"running": True}


@router.get("/datasets/{dataset_id}/checks")
def checked(
    request: Request, dataset_id: str, model: Annotated[str | None, Query(max_length=300)] = None
) -> dict[str, Any]:
    """What was found, by that model's tokenizer or estimated; ``found`` is null until it is."""
    folder = settings_of(request).uploads
    known = datasets.dataset(folder, dataset_id)
    seen = inspection.found(folder, known, model)
    return {
        "running": inspection.running(folder, known, model),
        "found": None if seen is None else seen.model_dump(mode="json"),
    }
