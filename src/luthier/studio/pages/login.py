"""The login page: the only one that strangers see."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from luthier.studio.web import asset, render

router = APIRouter()


@router.get("/login")
def login(request: Request, next: str = "/") -> Response:  # noqa: A002 - the name in the URL
    """A form for the token; a link's code in the fragment is sent by the page's script."""
    # Only a path of our own is gone to: //host and /\\host would leave.
    own = next.startswith("/") and not next.startswith(("//", "/\\"))
    return render(request, "login.html", {"next": next if own else "/"})


@router.get("/health")
def health() -> Response:
    """Whether the studio answers."""
    return PlainTextResponse("ok")


@router.get("/favicon.ico")
def favicon() -> Response:
    """Browsers ask here whatever the page says."""
    return RedirectResponse(asset("mark.svg"), 301)
