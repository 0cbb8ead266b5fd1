"""The studio as one ASGI application: pages, API, live updates."""

from __future__ import annotations

import importlib
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from luthier.runs.queue import Queue
from luthier.studio import live, openai, problems
from luthier.studio.access import Access
from luthier.studio.api import ROUTERS
from luthier.studio.guard import Guard
from luthier.studio.pages import PAGES
from luthier.studio.services.runs import RunIndex
from luthier.studio.settings import StudioSettings
from luthier.studio.web import STATIC
from luthier.version import __version__


class Packed(GZipMiddleware):
    """Pages, scripts and styles are packed; files of the API may be gigabytes, streams must not wait."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        if path.startswith(("/api/", "/v1/", "/live")) or "/files/" in path or path.endswith(".woff2"):
            await self.app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class Files(StaticFiles):
    """Static files; a URL with a digest never changes its content."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        kept = scope.get("query_string", b"").startswith(b"v=") and response.status_code == 200
        response.headers["cache-control"] = "public, max-age=31536000, immutable" if kept else "no-cache"
        return response


def create_app(settings: StudioSettings | None = None) -> FastAPI:
    """A studio over the runs that its settings name."""
    settings = settings or StudioSettings()
    access = Access(settings.home)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # What a scheduler of an earlier start left waiting goes on; the list of runs is read once, ahead.
        await run_in_threadpool(_take_up, app)
        yield

    app = FastAPI(
        title="Luthier studio",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
    )
    app.state.settings = settings
    app.state.access = access
    app.state.index = RunIndex(settings.runs)
    app.add_middleware(Packed, minimum_size=1000, compresslevel=6)
    app.add_middleware(Guard, settings=settings, access=access)
    problems.install(app)
    for name in ROUTERS:
        app.include_router(_router("api", name), prefix="/api/v1")
    for name in PAGES:
        app.include_router(_router("pages", name), include_in_schema=False)
    app.include_router(openai.router)
    app.include_router(live.router)
    app.mount("/static", Files(directory=STATIC), name="static")
    return app


def _take_up(app: FastAPI) -> None:
    queue = Queue(app.state.settings.runs)
    queue.settle()
    if queue.jobs(frozenset({"queued", "preparing"})):
        queue.wake()
    threading.Thread(target=app.state.index.rows, name="index", daemon=True).start()


def _router(kind: str, name: str) -> APIRouter:
    router = importlib.import_module(f"luthier.studio.{kind}.{name}").router
    assert isinstance(router, APIRouter)
    return router
