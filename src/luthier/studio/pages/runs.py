"""Runs: the list with its queue, two runs side by side, and a job that is being prepared."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import RedirectResponse, Response

from luthier.runs.directory import RunDirectory
from luthier.runs.lineage import changes
from luthier.runs.queue import Queue
from luthier.runs.stages import load_comparisons, load_estimate
from luthier.schema.queue import OPEN
from luthier.schema.results import TrainResult
from luthier.studio.problems import NotFound
from luthier.studio.services.runs import find, matching, predicted_peak
from luthier.studio.web import render, settings_of
from luthier.words import duration, memory

router = APIRouter()
STATES = ("active", "running", "queued", "done", "stopped", "failed", "lost")
PAGE = 200


@router.get("/runs")
def runs(
    request: Request,
    status: Annotated[str, Query(max_length=40)] = "",
    q: Annotated[str, Query(max_length=200)] = "",
    page: Annotated[int, Query(ge=1, le=10_000)] = 1,
) -> Response:
    """All runs, filtered by state and words; the queue above them."""
    queue = Queue(settings_of(request).runs)
    queue.settle()
    rows = request.app.state.index.rows()
    found = matching(rows, status=status, q=q)
    context = {
        "rows": found[(page - 1) * PAGE : page * PAGE],
        "found": len(found),
        "total": len(rows),
        "active": len(matching(rows, status="active")),
        "status": status,
        "q": q,
        "number": page,
        "pages": -(-len(found) // PAGE),
        "states": STATES,
        "jobs": queue.jobs(OPEN),
        "leases": queue.leases(),
        "ids": {row.id for row in rows},
    }
    return render(request, "runs.html", context, page="runs")


@router.get("/runs/diff")
def diff(request: Request, ids: Annotated[str, Query(max_length=400)] = "") -> Response:
    """Two runs side by side: settings that differ, then what came of them."""
    settings = settings_of(request)
    names = [name for name in ids.split(",") if name]
    if len(names) != 2:
        raise NotFound("two runs are compared", hint="choose two in the list: /runs/diff?ids=ONE,OTHER")
    one, two = find(settings, names[0]), find(settings, names[1])
    context = {
        "one": one,
        "two": two,
        "changed": changes(one.recipe, two.recipe),
        "outcomes": _outcomes(one, two),
    }
    return render(request, "diff.html", context, page="runs")


def _outcomes(one: RunDirectory, two: RunDirectory) -> list[tuple[str, str, str]]:
    """What came of two runs, in words, where either knows it."""
    sides = []
    for run in (one, two):
        train, estimate = run.stage("train", TrainResult), load_estimate(run)
        found: dict[str, str] = {"Status": run.status.state}
        if train is not None:
            if train.best_validation_loss is not None:
                found["Best loss on held-out rows"] = f"{train.best_validation_loss:.4f}"
            found["Last training loss"] = f"{train.last_loss:.4f}"
            found["Training time"] = duration(train.seconds)
            found["Tokens per second"] = f"{train.tokens_per_second:,.0f}"
            found["Peak memory"] = memory(train.peak_memory)
        if estimate is not None:
            found["Predicted memory"] = memory(predicted_peak(run, estimate))
        for comparison in load_comparisons(run):
            for change in comparison.differences:
                if change.metric == comparison.primary:
                    tuned, base = change.tuned, change.baseline
                    words = f"{base.value:.4f} → {tuned.value:.4f} ({tuned.low:.4f} to {tuned.high:.4f})"
                    found[f"{comparison.split}: {change.metric}"] = words
        sides.append(found)
    keys = list(dict.fromkeys([*sides[0], *sides[1]]))
    return [(key, sides[0].get(key, ""), sides[1].get(key, "")) for key in keys]


@router.get("/jobs/{job_id}")
def job(request: Request, job_id: str) -> Response:
    """A job that is being prepared, or why it could not be; one that has its run goes on there."""
    queue = Queue(settings_of(request).runs)
    queue.settle()
    found = queue.get(job_id)
    if found.run is not None and found.state != "failed":
        return RedirectResponse(f"/runs/{found.run}", 303)
    path = queue.log_path(found.id)
    log = path.read_text(encoding="utf-8", errors="replace")[-8000:] if path.exists() else ""
    return render(request, "job.html", {"job": found, "log": log}, page="runs")
