"""/api/v1/runs: what each run is, did and says."""

from __future__ import annotations

import asyncio
import json
import zipfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, Response, StreamingResponse

from luthier.runs.directory import RunDirectory
from luthier.runs.lineage import changes
from luthier.runs.process import ACTIVE, current_state
from luthier.runs.queue import Queue
from luthier.studio.api.jobs import act_on_run
from luthier.studio.services import checkpoints as kept
from luthier.studio.services import seen
from luthier.studio.services.bundle import bundle
from luthier.studio.services.metrics import COLUMNS, MOST_POINTS, sampled, tail
from luthier.studio.services.runs import RunIndex, find, matching
from luthier.studio.web import settings_of

router = APIRouter(tags=["runs"])
REFUSED: dict[int | str, dict[str, Any]] = {404: {}, 409: {}}


def index_of(request: Request) -> RunIndex:
    """The index of the studio that a request came to."""
    index = request.app.state.index
    assert isinstance(index, RunIndex)
    return index


@router.get("/runs")
def runs(
    request: Request,
    status: Annotated[str, Query(max_length=40)] = "",
    q: Annotated[str, Query(max_length=200)] = "",
    limit: Annotated[int, Query(ge=1, le=5000)] = 1000,
) -> dict[str, Any]:
    """Runs, newest first, by state (or ``active``) and words."""
    rows = matching(index_of(request).rows(), status=status, q=q)
    return {"runs": [asdict(row) for row in rows[:limit]], "total": len(rows)}


@router.get("/runs/{run_id}", responses=REFUSED)
def run(request: Request, run_id: str) -> dict[str, Any]:
    """One run: status, recipe, results, files."""
    found = find(settings_of(request), run_id)
    return {
        "id": found.id,
        "state": current_state(found),
        "status": found.status.model_dump(mode="json", exclude={"worker"}),
        "recipe": found.recipe.model_dump(mode="json"),
        "train": found.stage_values("train"),
        "comparisons": found.stage_values("comparison") or [],
        "artifacts": found.stage_values("artifacts") or [],
        "origin": found.stage_values("origin"),
    }


@router.get("/runs/{run_id}/metrics", responses=REFUSED)
def metrics(
    request: Request,
    run_id: str,
    since: Annotated[int, Query(ge=0, le=2**62)] = 0,
    max_points: Annotated[int, Query(ge=3, le=20_000)] = MOST_POINTS,
) -> dict[str, Any]:
    """Columns of steps (sampled where there are more than ``max_points``) and the next byte offset."""
    found = find(settings_of(request), run_id)
    return sampled(found.path / "metrics.jsonl", since=since, most=max_points)


@router.get("/runs/{run_id}/metrics.csv", responses=REFUSED)
def metrics_csv(request: Request, run_id: str) -> Response:
    """Every step and evaluation as CSV."""
    found = find(settings_of(request), run_id)
    names = ("kind", *COLUMNS)

    def lines() -> Iterator[str]:
        yield ",".join(names) + "\n"
        for values, _ in found.lines("metrics"):
            if values.get("kind") in ("step", "validation"):
                yield ",".join(str(values.get(name, "")) for name in names) + "\n"

    headers = {"content-disposition": f'attachment; filename="{found.id}.csv"'}
    return StreamingResponse(lines(), media_type="text/csv", headers=headers)


@router.get("/runs/{run_id}/log", responses=REFUSED)
def log(request: Request, run_id: str, tail: Annotated[int, Query(ge=1, le=100_000)] = 500) -> Response:
    """The end of a run's log as plain text."""
    found = find(settings_of(request), run_id)
    return Response(last_lines(found, tail), media_type="text/plain; charset=utf-8")


def last_lines(run: RunDirectory, count: int) -> str:
    """The last lines of a run's log."""
    try:
        with (run.path / "log.txt").open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 400 * count))
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-count:])


@router.get("/runs/{run_id}/checkpoints", responses=REFUSED)
def checkpoints(request: Request, run_id: str) -> dict[str, Any]:
    """Whole checkpoints with their step, loss and size."""
    found = find(settings_of(request), run_id)
    return {"checkpoints": [asdict(one) for one in kept.checkpoints(found)]}


@router.get("/runs/{run_id}/samples", responses=REFUSED)
def samples(request: Request, run_id: str) -> dict[str, Any]:
    """Prompts with the answers of base and tuned model."""
    found = find(settings_of(request), run_id)
    return {"samples": seen.samples(found)}


@router.get("/runs/{run_id}/batch", responses=REFUSED)
def batch(request: Request, run_id: str, rows: Annotated[int, Query(ge=1, le=20)] = 4) -> dict[str, Any]:
    """The first training rows as the model sees them, each token with whether it carries loss."""
    return {"rows": seen.batch(find(settings_of(request), run_id), rows)}


@router.get("/runs/{run_id}/recipe.yaml", responses=REFUSED)
def recipe(request: Request, run_id: str) -> Response:
    """The frozen recipe."""
    found = find(settings_of(request), run_id)
    return FileResponse(
        found.path / "recipe.yaml", media_type="application/yaml", filename=f"{found.id}.yaml"
    )


@router.get("/runs/{run_id}/report.html", responses=REFUSED)
def report(request: Request, run_id: str) -> Response:
    """The run's own report: one file with its own style, and no script."""
    from luthier.studio.problems import NotFound

    found = find(settings_of(request), run_id)
    path = found.path / "report.html"
    if not path.is_file():
        raise NotFound(f"{found.id} has no report yet", hint="it is written at the end of a run")
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; sandbox"
    return FileResponse(path, media_type="text/html", headers={"content-security-policy": policy})


@router.get("/runs/{run_id}/bundle.zip", responses=REFUSED)
def bundle_zip(request: Request, run_id: str) -> Response:
    """What somebody needs to look into a run elsewhere: recipe, status, metrics, results, log; no weights."""
    found = find(settings_of(request), run_id)
    data = bundle(found, zipfile.ZIP_DEFLATED)
    return Response(
        data,
        media_type="application/zip",
        headers={"content-disposition": f'attachment; filename="{found.id}.zip"'},
    )


@router.get("/runs/{run_id}/diff/{other}", responses=REFUSED)
def diff(request: Request, run_id: str, other: str) -> dict[str, Any]:
    """Settings in which two runs differ."""
    settings = settings_of(request)
    one, two = find(settings, run_id), find(settings, other)
    changed = changes(one.recipe, two.recipe)
    return {"changed": {key: value.model_dump(mode="json") for key, value in changed.items()}}


@router.post("/runs/{run_id}/{wish}", responses=REFUSED)
def act(request: Request, run_id: str, wish: Literal["stop", "kill", "save"]) -> dict[str, Any]:
    """Stop (and save), save or kill what runs; what waits is cancelled."""
    settings = settings_of(request)
    found = find(settings, run_id)
    waiting = Queue(settings.runs).of_run(found.id)
    if waiting is not None and waiting.state == "queued":
        Queue(settings.runs).cancel(waiting.id)
    else:
        act_on_run(found, wish)
    return {"id": found.id, "state": current_state(found)}


@router.delete("/runs/{run_id}", responses=REFUSED)
def remove(request: Request, run_id: str) -> dict[str, Any]:
    """Remove a run's folder; refused where it runs, is deployed or protected."""
    from luthier.runs.upkeep import remove as take_away

    found = find(settings_of(request), run_id)
    return {"freed": take_away(found)}


@router.get("/runs/{run_id}/events", responses=REFUSED)
async def events(request: Request, run_id: str, since: Annotated[int, Query(ge=0, le=2**62)] = 0) -> Response:
    """Server-sent events of a run: ``status`` and ``metrics``, until it is over. For programs, not pages."""
    found = await run_in_threadpool(find, settings_of(request), run_id)

    async def stream() -> AsyncIterator[str]:
        offset, told = since, ""
        while not await request.is_disconnected():
            state = await run_in_threadpool(current_state, found)
            news = await run_in_threadpool(tail, found.path / "metrics.jsonl", offset, most=1000)
            status = found.status
            words = json.dumps({"state": state, "step": status.step, "total_steps": status.total_steps})
            if words != told:
                told = words
                yield f"event: status\ndata: {words}\n\n"
            if news["offset"] != offset:
                offset = news["offset"]
                yield f"event: metrics\nid: {offset}\ndata: {json.dumps(news)}\n\n"
            elif state not in ACTIVE:
                return
            await asyncio.sleep(0.5)

    return StreamingResponse(stream(), media_type="text/event-stream")
