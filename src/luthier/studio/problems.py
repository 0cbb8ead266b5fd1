"""Failures as RFC 9457 problem documents, and as a page for people."""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from luthier.errors import (
    DataError,
    DoesNotFit,
    FileProblem,
    GatedModel,
    LicenceBroken,
    LuthierError,
    ModelNotFound,
    ToolchainError,
    Unreachable,
    Unsupported,
    UsageError,
)
from luthier.runs.queue import AlreadyBusy, NotQueued


class NotFound(UsageError):
    """What a URL names is not there."""


class Conflict(UsageError):
    """What was asked does not go with the state that things are in."""


STATUS: tuple[tuple[type[LuthierError], int], ...] = (
    (NotFound, 404),
    (NotQueued, 404),
    (AlreadyBusy, 409),
    (ModelNotFound, 404),
    (Conflict, 409),
    (GatedModel, 403),
    (LicenceBroken, 403),
    (Unsupported, 422),
    (DataError, 422),
    (DoesNotFit, 422),
    (FileProblem, 422),
    (UsageError, 422),
    (Unreachable, 503),
    (ToolchainError, 503),
)


def code_of(error: Exception) -> str:
    """A failure's code: the name of its class in words, as ``does-not-fit``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(error).__name__).lower()


def status_of(error: LuthierError) -> int:
    """The HTTP status of a failure."""
    if code_of(error) == "too-many-tries":
        return 429
    return next((status for kind, status in STATUS if isinstance(error, kind)), 422)


def problem(
    status: int,
    code: str,
    detail: str,
    fix: str | None,
    *,
    where: str | None = None,
    headers: dict[str, str] | None = None,
    **more: Any,
) -> JSONResponse:
    """A problem document: ``type, title, status, code, detail, fix`` and ``where`` if it has a place."""
    body = {
        "type": f"urn:luthier:problem:{code}",
        "title": code.replace("-", " "),
        "status": status,
        "code": code,
        "detail": detail,
        "fix": fix,
        **({"where": where} if where else {}),
        **more,
    }
    return JSONResponse(body, status, headers=headers, media_type="application/problem+json")


def problem_of(error: LuthierError) -> JSONResponse:
    """A failure of ours as a problem document."""
    return problem(status_of(error), code_of(error), error.message, error.hint, where=error.where)


def wants_page(request: Request) -> bool:
    """Whether a person's browser asks for a page rather than a program for data."""
    path = request.url.path
    return not path.startswith(("/api/", "/v1/")) and "text/html" in request.headers.get("accept", "")


def install(app: FastAPI) -> None:
    """Answer every failure as a problem document or, where a page was asked for, as a page."""
    from luthier.studio.web import render

    def answer(
        request: Request, status: int, code: str, detail: str, fix: str | None, **more: Any
    ) -> Response:
        if wants_page(request):
            return render(
                request, "problem.html", {"code": code, "detail": detail, "fix": fix, **more}, status=status
            )
        return problem(status, code, detail, fix, **more)

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, LuthierError)
        return answer(request, status_of(error), code_of(error), error.message, error.hint, where=error.where)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "not-found", 405: "method-not-allowed"}.get(error.status_code, "refused")
        detail = str(error.detail) if error.status_code != 404 else f"there is nothing at {request.url.path}"
        response = answer(request, error.status_code, code, detail, None)
        for name, value in (error.headers or {}).items():
            response.headers[name] = value
        return response

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        faults = [
            {"where": ".".join(map(str, one["loc"])), "what": str(one["msg"])} for one in error.errors()
        ]
        detail = "; ".join(f"{one['where']}: {one['what']}" for one in faults[:5])
        return answer(request, 422, "invalid-request", detail, "see /api/v1/openapi.json", faults=faults)

    app.add_exception_handler(LuthierError, ours)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
