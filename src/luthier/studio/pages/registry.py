"""Registry: tuned models by name and version, what is in production, and the way back."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from luthier.errors import LuthierError, UsageError
from luthier.runs import registry as store
from luthier.studio.problems import status_of
from luthier.studio.services.forms import Sent
from luthier.studio.services.registering import model, models, previous, registrable, version
from luthier.studio.services.runs import find
from luthier.studio.web import render, settings_of

router = APIRouter()


@router.get("/registry")
def registry(request: Request, run: str = "") -> Response:
    """Every registered name. run: chosen in the form."""
    return _list(request, chosen=run)


def _list(request: Request, *, chosen: str = "", error: LuthierError | None = None) -> Response:
    values = {
        "found": models(),
        "runs": registrable(settings_of(request).runs),
        "chosen": chosen,
        "error": error,
    }
    return render(
        request, "registry.html", values, page="registry", status=status_of(error) if error else 200
    )


@router.post("/registry")
async def add(request: Request, form: Sent) -> Response:
    """Register a run as the next version of a name."""
    try:
        run = await asyncio.to_thread(find, settings_of(request), form.one("run"))
        name = form.one("name").strip() or None
        made = await asyncio.to_thread(store.add, run, name=name, note=form.one("note").strip()[:500])
    except LuthierError as error:
        return await asyncio.to_thread(_list, request, chosen=form.one("run"), error=error)
    return RedirectResponse(f"/registry/{made.name}", 303)


@router.get("/registry/{name}")
def one(request: Request, name: str, diff: str = "") -> Response:
    """One name: versions, aliases and their history. diff: two versions, as ``1,3``."""
    return _one(request, name, diff=diff)


def _one(request: Request, name: str, *, diff: str = "", error: LuthierError | None = None) -> Response:
    found = model(name)
    numbers = [int(part) for part in diff.split(",") if part.isascii() and part.isdigit() and len(part) < 9]
    pair = tuple(numbers) if len(numbers) == 2 else None
    values = {
        "found": found,
        "pair": pair,
        "differences": store.differences(*(version(name, number) for number in pair)) if pair else {},
        "before": {alias: previous(name, alias) for alias in found.aliases},
        "error": error,
    }
    return render(
        request, "registered.html", values, page="registry", status=status_of(error) if error else 200
    )


@router.post("/registry/{name}/{deed}")
async def change(request: Request, name: str, deed: str, form: Sent) -> Response:
    """Promote a version, roll an alias back, drop an alias, or forget a version."""
    model(name)  # a name that is none is not found, whatever was wished
    alias, number = form.one("alias").strip(), form.one("version").strip()
    deeds = {
        "promote": lambda: store.promote(f"{name}:{number}", alias),
        "rollback": lambda: store.rollback(name, alias),
        "unalias": lambda: store.drop_alias(name, alias),
        "forget": lambda: store.remove(f"{name}:{number}"),
    }
    try:
        if deed not in deeds:
            raise UsageError(f"{deed[:40]!r} cannot be done to a registered model")
        await asyncio.to_thread(deeds[deed])
    except LuthierError as error:
        return await asyncio.to_thread(_one, request, name, error=error)
    return RedirectResponse(f"/registry/{name}" if name in store.names() else "/registry", 303)
