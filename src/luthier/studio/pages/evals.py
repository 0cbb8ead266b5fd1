"""Evaluations: every comparison, and one with its rows."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import RedirectResponse, Response

from luthier.errors import LuthierError
from luthier.runs.directory import RunDirectory
from luthier.runs.report.words import is_share
from luthier.studio.problems import NotFound, status_of
from luthier.studio.services.datasets import shelf
from luthier.studio.services.evals import Against, Only, judged, open_evaluation, plot_of, row_page
from luthier.studio.services.exports import exportable
from luthier.studio.services.forms import Form, Sent
from luthier.studio.services.judging import judge_more
from luthier.studio.services.runs import find
from luthier.studio.services.slicing import slices_of
from luthier.studio.web import render, settings_of

router = APIRouter()


@router.get("/evals")
def evals(request: Request, q: str = "", verdict: str = "") -> Response:
    """Every comparison of every run."""
    return _page(request, q, verdict)


def _page(
    request: Request,
    q: str = "",
    verdict: str = "",
    *,
    form: Form | None = None,
    error: LuthierError | None = None,
) -> Response:
    settings = settings_of(request)
    form = form or Form({"run": [request.query_params.get("run", "")]})
    values = {
        "found": judged(settings.runs, q, verdict),
        "q": q,
        "verdict": verdict,
        "runs": exportable(settings.runs),
        "sets": shelf(settings.uploads),
        "form": form,
        "error": error,
    }
    return render(request, "evals.html", values, page="evals", status=status_of(error) if error else 200)


@router.post("/evals")
async def judge(request: Request, form: Sent) -> Response:
    """Judge a run on more rows; the job's page goes on to the run."""
    settings = settings_of(request)
    try:
        run = await asyncio.to_thread(find, settings, form.one("run"))
        job = await asyncio.to_thread(judge_more, settings, run, form.one("data"), form.one("name"))
    except LuthierError as error:
        return await asyncio.to_thread(_page, request, form=form, error=error)
    return RedirectResponse(f"/jobs/{job.id}", 303)


@router.get("/evals/{name}")
def evaluation(
    request: Request,
    name: str,
    *,
    split: str | None = None,
    only: Only = "all",
    against: Against = "expected",
    q: str = "",
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
) -> Response:
    """One run's base and tuned model on one split."""
    run = find(settings_of(request), name)
    found = open_evaluation(run, split)
    rows = row_page(found, only=only, against=against, q=q, page=page)
    main = found.comparison.main
    share = is_share(main.metric, main.baseline)
    values = {
        "found": found,
        "rows": rows,
        "only": only,
        "against": against,
        "q": q,
        "plot": plot_of(main.delta, share=share),
        "main": next(row for row in found.metrics if row.primary),
        "sides": ("base better", "tuned better")
        if main.delta.greater_is_better
        else ("tuned better", "base better"),
    }
    return render(request, "evaluation.html", values, page="evals")


@router.get("/evals/{name}/slices")
def slices(request: Request, name: str, split: str | None = None) -> Response:
    """Parts of the split on their own: apart, because their tests take seconds."""
    settings = settings_of(request)
    run: RunDirectory = find(settings, name)
    found = open_evaluation(run, split)
    if found.tuned is None:
        raise NotFound(f"{run.id} has no answers on {found.split}")
    parts = slices_of(run, found.split, home=settings.home)
    return render(request, "slices.html", {"found": found, "parts": parts}, page="evals")
