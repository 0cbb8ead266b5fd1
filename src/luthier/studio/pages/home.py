"""Home."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from luthier.studio.web import render

router = APIRouter()


@router.get("/")
def home(request: Request) -> Response:
    """What runs, what waits, what was done last."""
    return render(request, "home.html", page="home")
