"""Sweeps: settings searched, models compared, scores by number of rows."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from luthier.errors import LuthierError, UsageError
from luthier.studio.problems import status_of
from luthier.studio.services.exports import exportable
from luthier.studio.services.forms import Form, Sent
from luthier.studio.services.runs import find
from luthier.studio.services.sweeping import go_on, start_sweep, stop_sweep, sweep_named, sweeps, view_of
from luthier.studio.web import render, settings_of

router = APIRouter()
USUAL = "training.learning_rate=1e-5..1e-3:log\nmethod.rank=8,16,32"


@router.get("/sweeps")
def listing(request: Request, run: str = "") -> Response:
    """Every sweep, and a form for one more. run: whose recipe is searched around."""
    return _page(request, Form({"run": [run]}))


def _page(request: Request, form: Form, error: LuthierError | None = None) -> Response:
    settings = settings_of(request)
    values = {
        "found": sweeps(settings),
        "runs": exportable(settings.runs),
        "form": form,
        "space": form.one("space") or USUAL,
        "error": error,
    }
    return render(request, "sweeps.html", values, page="sweeps", status=status_of(error) if error else 200)


@router.post("/sweeps")
async def begin(request: Request, form: Sent) -> Response:
    """Start a search around a run's recipe."""
    settings = settings_of(request)
    try:
        run = await asyncio.to_thread(find, settings, form.one("run"))
        words = [line.strip() for line in form.one("space").splitlines() if line.strip()]
        trials = form.one("trials").strip() or "12"
        if not (trials.isascii() and trials.isdigit() and len(trials) < 6):
            raise UsageError(f"{trials[:20]!r} is no number of trials")
        made = await asyncio.to_thread(start_sweep, settings, run, words, trials=int(trials))
    except LuthierError as error:
        return await asyncio.to_thread(_page, request, form, error)
    return RedirectResponse(f"/sweeps/{made.path.name}", 303)


@router.get("/sweeps/{name}")
def sweep(request: Request, name: str) -> Response:
    """One sweep: what was found, its charts, every trial."""
    view = view_of(sweep_named(settings_of(request), name))
    return render(request, "sweep.html", {"view": view}, page="sweeps")


@router.post("/sweeps/{name}/{deed}")
async def act(request: Request, name: str, deed: str) -> Response:
    """Stop a sweep, or go on with it."""
    settings = settings_of(request)
    folder = await asyncio.to_thread(sweep_named, settings, name)
    if deed == "stop":
        await asyncio.to_thread(stop_sweep, folder)
    elif deed == "go-on":
        await asyncio.to_thread(go_on, settings, folder)
    else:
        raise UsageError(f"{deed[:40]!r} cannot be done to a sweep")
    return RedirectResponse(f"/sweeps/{folder.path.name}", 303)
