"""Serve: models that answer requests, what they take, and who asked."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from luthier.errors import LuthierError
from luthier.runs.servers import UP, forget_server, start_server, stop_server
from luthier.schema.server import ServerWish
from luthier.studio.problems import status_of
from luthier.studio.services.forms import Form, Sent
from luthier.studio.services.runs import find
from luthier.studio.services.serving import (
    KEY,
    leaving,
    plan_of,
    servable,
    server_named,
    servers,
    snippets,
    start,
    system_of,
    view_of,
)
from luthier.studio.web import render, settings_of

router = APIRouter()


@router.get("/serve")
def serve(request: Request, model: str = "", gguf: str = "", context: str = "", slots: str = "") -> Response:
    """What is served, and a form that prices one more before it is started."""
    return _page(request, Form({"model": [model], "gguf": [gguf], "context": [context], "slots": [slots]}))


def _wish(form: Form) -> ServerWish:
    name = form.one("name").strip()
    target = form.one("model").strip()
    models = (f"{name}={target}" if name else target,) if target else ()
    return form.record(ServerWish, "gguf", "context", "slots", "port", models=models)


def _page(request: Request, form: Form, error: LuthierError | None = None) -> Response:
    settings = settings_of(request)
    known = servable(settings.runs)
    chosen = next((one for one in known if one.run == form.one("model")), known[0] if known else None)
    gguf = form.one("gguf") if chosen and form.one("gguf") in chosen.ggufs else ""
    plan, trouble = None, None
    if chosen is not None:
        try:
            wish = form.record(ServerWish, "context", "slots")
            plan = plan_of(
                find(settings, chosen.run), gguf=gguf or None, context=wish.context, slots=wish.slots
            )
        except LuthierError as refused:
            trouble = refused
    found = servers()
    values: dict[str, Any] = {
        "up": [one for one in found if one.status.state in UP],
        "ended": [one for one in found if one.status.state not in UP][:10],
        "known": known,
        "chosen": chosen,
        "gguf": gguf,
        "form": form,
        "plan": plan,
        "trouble": trouble,
        "error": error,
    }
    return render(request, "serve.html", values, page="serve", status=status_of(error) if error else 200)


@router.post("/serve")
async def begin(request: Request, form: Sent) -> Response:
    """Start a server."""
    try:
        wish = _wish(form)
        made = await asyncio.to_thread(start, wish, settings_of(request))
    except LuthierError as error:
        return await asyncio.to_thread(_page, request, form, error)
    return RedirectResponse(f"/serve/{made.id}", 303)


@router.get("/serve/{name}")
def server(request: Request, name: str) -> Response:
    """One server: how it is, how to ask it, who asked."""
    found = view_of(server_named(name))
    status = found.status
    values = {
        "view": found,
        "status": status,
        "snippets": {m.name: snippets(status.url, m) for m in status.models}
        if status.state == "ready"
        else {},
        "key": found.server.key,
        "key_name": KEY,
        "requests": found.server.requests(),
        "log": found.server.log_tail() if status.state in ("failed", "lost") else "",
        "is_up": status.state in UP,
        "system": system_of(settings_of(request), status),
        "leave_by": leaving(settings_of(request), found.server),
    }
    return render(request, "server.html", values, page="serve")


@router.post("/serve/{name}/stop")
async def stop(name: str) -> Response:
    """Stop a server: answers under way are given time to end."""
    found = server_named(name)
    await asyncio.to_thread(stop_server, found)
    return RedirectResponse(f"/serve/{found.id}", 303)


@router.post("/serve/{name}/start")
async def again(name: str) -> Response:
    """Start a server that has ended once more, with the same settings."""
    made = await asyncio.to_thread(start_server, server_named(name).wish)
    return RedirectResponse(f"/serve/{made.id}", 303)


@router.post("/serve/{name}/forget")
async def forget(name: str) -> Response:
    """Delete what is kept of a server that has ended."""
    await asyncio.to_thread(forget_server, server_named(name))
    return RedirectResponse("/serve", 303)
