"""/api/v1/evals: what was judged, and every row of it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from luthier.studio.services.evals import Against, Only, judged, open_evaluation, plain_rows, row_page
from luthier.studio.services.jobs import view
from luthier.studio.services.judging import judge_more
from luthier.studio.services.runs import find
from luthier.studio.web import settings_of

router = APIRouter(tags=["evals"])
REFUSED: dict[int | str, dict[str, Any]] = {404: {}}
Words = Annotated[str, Query(max_length=200)]


@router.get("/evals")
def evals(request: Request, q: Words = "", verdict: Words = "") -> dict[str, Any]:
    """Every comparison of base and tuned model, newest run first."""
    return {"evals": [asdict(one) for one in judged(settings_of(request).runs, q, verdict)]}


class AskedEvaluation(BaseModel):
    """A run and the rows that it is judged on."""

    model_config = ConfigDict(extra="forbid")
    run: str = Field(max_length=200)
    data: str = Field(max_length=200)
    """Id of a data set."""
    name: str = Field("", max_length=60)
    """What the split is called; the data set's name when not given."""


@router.post("/evals", status_code=202, responses={**REFUSED, 409: {}})
def judge(request: Request, asked: AskedEvaluation) -> dict[str, Any]:
    """Enter a job that judges base and tuned model on a data set."""
    settings = settings_of(request)
    return view(judge_more(settings, find(settings, asked.run), asked.data, asked.name))


@router.get("/evals/{run_id}", responses=REFUSED)
def evaluation(
    request: Request, run_id: str, split: Annotated[str | None, Query(max_length=200)] = None
) -> Any:
    """One comparison: every metric with its interval, verdict in words."""
    found = open_evaluation(find(settings_of(request), run_id), split)
    return {
        "run": found.run.id,
        "splits": found.splits,
        "comparison": found.comparison.model_dump(mode="json"),
        "banner": asdict(found.banner),
    }


@router.get("/evals/{run_id}/rows", responses=REFUSED)
def rows(
    request: Request,
    run_id: str,
    *,
    split: Annotated[str | None, Query(max_length=200)] = None,
    only: Only = "all",
    against: Against = "expected",
    q: Words = "",
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    size: Annotated[int, Query(ge=1, le=500)] = 50,
) -> dict[str, Any]:
    """Rows with both answers, regressed ones first."""
    found = open_evaluation(find(settings_of(request), run_id), split)
    part = row_page(found, only=only, against=against, q=q, page=page, size=size)
    return {
        "page": part.page,
        "pages": part.pages,
        "found": part.found,
        "counts": part.counts,
        "rows": plain_rows(part),
    }
