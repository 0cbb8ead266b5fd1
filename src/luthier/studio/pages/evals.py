"""Evaluations: every comparison, and one with its rows."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from luthier.runs.directory import RunDirectory
from luthier.runs.report.words import is_share
from luthier.studio.problems import NotFound
from luthier.studio.services.evals import Against, Only, judged, open_evaluation, plot_of, row_page
from luthier.studio.services.runs import find
from luthier.studio.services.slicing import slices_of
from luthier.studio.web import render, settings_of

router = APIRouter()


@router.get("/evals")
def evals(request: Request, q: str = "", verdict: str = "") -> Response:
    """Every comparison of every run."""
    found = judged(settings_of(request).runs, q, verdict)
    return render(request, "evals.html", {"found": found, "q": q, "verdict": verdict}, page="evals")


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
