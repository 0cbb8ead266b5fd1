"""GET /api/v1/system, login and logout."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from luthier.studio.access import SESSION_SECONDS, Access
from luthier.studio.guard import cookie_name
from luthier.studio.problems import problem
from luthier.studio.system import gauge, hardware
from luthier.studio.web import settings_of
from luthier.version import __version__

router = APIRouter(tags=["system"])


class Login(BaseModel):
    """What a login is asked with."""

    model_config = ConfigDict(extra="forbid")
    token: str
    """A login link's code, or the studio's token."""


def access_of(request: Request) -> Access:
    """The keeper of tokens of the studio that a request came to."""
    access = request.app.state.access
    assert isinstance(access, Access)
    return access


@router.get("/system")
def system(request: Request) -> dict[str, Any]:
    """Accelerators, memory, disk, versions, and whether the studio may use the network."""
    settings = settings_of(request)
    return {
        "version": __version__,
        "python": platform.python_version(),
        "packages": _packages(),
        "offline": os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"),
        "runs": str(settings.runs),
        "gauge": gauge(settings.runs),
        "hardware": hardware(settings.runs).model_dump(mode="json"),
    }


def _packages() -> dict[str, str]:
    names = ("torch", "transformers", "peft", "xllamacpp", "fastapi", "uvicorn")
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@router.post("/login", responses={401: {}, 429: {}})
async def login(request: Request, asked: Login) -> Response:
    """Swap a login link's code, or the token, for a session cookie."""
    settings = settings_of(request)
    session = await run_in_threadpool(access_of(request).login, asked.token)
    if session is None:
        return problem(
            401,
            "wrong-token",
            "the link has been used or has run out, or the token is wrong",
            "print a new link with `luthier studio --link`",
        )
    response = JSONResponse({"ok": True})
    response.set_cookie(
        cookie_name(settings),
        session,
        max_age=SESSION_SECONDS,
        httponly=True,
        samesite="strict",
        secure=settings.secure,
        path="/",
    )
    return response


@router.post("/logout")
def logout(request: Request) -> Response:
    """End this browser's session."""
    response = JSONResponse({"ok": True})
    response.delete_cookie(cookie_name(settings_of(request)), path="/", samesite="strict", httponly=True)
    return response
