"""The server that people talk to: OpenAI-compatible, bounded in size, queue and time.

It holds no model: each one lives in a child process, so a crash there costs one answer and not the
server. Loopback by default; see :mod:`luthier.serving.guard` for who may ask.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
import httpx2
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from luthier.errors import Unreachable, did_you_mean
from luthier.serving.backends import Backend
from luthier.serving.guard import Guard, Rules
from luthier.serving.meters import Meters

if TYPE_CHECKING:
    from luthier.serving.adapters import LiveAdapters

PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/classify",
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one server."""

    body_bytes: int = 8 << 20
    """Largest request."""
    waiting: int = 64
    """Requests of one model that may wait for a slot; one more is told to come back."""
    wait_seconds: float = 120.0
    """Longest wait for a slot."""
    upload_seconds: float = 30.0
    """Longest time for a request's body to arrive."""


@dataclass(frozen=True, slots=True)
class Served:
    """A name that requests may ask for."""

    backend: Backend
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields added to each request: which adapter answers."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Shown in ``/v1/models``: context, quantisation, run, licence."""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One request, its words left out."""

    at: float
    model: str
    path: str
    status: int
    seconds: float


class Refused(Exception):
    """A request that is answered with an error of the OpenAI shape."""

    def __init__(
        self, status: int, message: str, *, code: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers or {}


def problem(status: int, message: str, *, code: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error as OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"error": {"message": message, "type": kind, "code": code, "param": None}}
    return JSONResponse(body, status_code=status, headers=dict(headers or {}))


class Gateway:
    """Routes requests to models by name, no more of them at once than these can take.

    Names may be added and dropped while it runs (:meth:`add`, :meth:`drop`); requests under way are
    answered to their end.
    """

    def __init__(
        self,
        served: Mapping[str, Served],
        *,
        limits: Limits | None = None,
        rules: Rules | None = None,
        on_request: Callable[[LogEntry], None] | None = None,
    ) -> None:
        """on_request: told of each request when it has ended."""
        self.served = dict(served)
        self.adapters: LiveAdapters | None = None
        """Loads and drops adapters by request, where that is allowed."""
        self._on_request = on_request
        self.limits = limits or Limits()
        self.rules = rules or Rules()
        self.meters = Meters()
        self.log: deque[LogEntry] = deque(maxlen=500)
        self._slots: dict[int, asyncio.Semaphore] = {}
        self._waiting: dict[int, int] = {}
        self._under_way = 0
        self._started = time.time()

    def app(self) -> Starlette:
        """The ASGI application. Its models are loaded by :meth:`start`."""
        return Starlette(
            routes=[
                *(Route(path, self._answer, methods=["POST"]) for path in PATHS),
                *(self.adapters.routes() if self.adapters else ()),
                Route("/v1/models", self._models),
                Route("/health", self._health),
                Route("/metrics", self._metrics),
            ],
            middleware=[Middleware(Guard, rules=self.rules)],
            exception_handlers={Refused: _refused, HTTPException: _http, Exception: _fault},
        )

    @property
    def busy(self) -> bool:
        """Whether a request is being answered or waits for it."""
        return self._under_way > 0 or any(self._waiting.values())

    def backends(self) -> list[Backend]:
        """Each model once, however many names it has."""
        return list({id(served.backend): served.backend for served in self.served.values()}.values())

    async def start(self) -> None:
        """Load every model. Errors: LuthierError; what was loaded by then is ended."""
        try:
            for backend in self.backends():
                await backend.start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End every model."""
        for backend in self.backends():
            await backend.close()

    async def add(self, name: str, served: Served) -> None:
        """Load a model (unless its backend runs already) and answer by its name."""
        if all(served.backend is not other.backend for other in self.served.values()):
            await served.backend.start()
        self.served[name] = served

    async def drop(self, name: str) -> None:
        """Answer by that name no longer; a backend that nobody names is ended."""
        gone = self.served.pop(name)
        if all(gone.backend is not other.backend for other in self.served.values()):
            await gone.backend.close()

    # ---- requests ---------------------------------------------------------------------------------

    async def _answer(self, request: Request) -> Response:
        path, began = request.url.path, time.monotonic()
        model, status = "", 500
        finished = False
        try:
            body = await self.body(request)
            model = self._choose(body)
            served = self.served[model]
            if path not in served.backend.paths:
                raise Refused(
                    400,
                    f"{model} does not answer {path}; it answers {', '.join(sorted(served.backend.paths))}",
                    code="wrong_endpoint",
                )
            response = await self._forward(request, model, body, began)
            status, finished = response.status_code, isinstance(response, StreamingResponse)
            return response
        except Refused as refusal:
            status = refusal.status
            raise
        finally:
            if not finished:
                self._note(model, path, status, began)

    async def body(self, request: Request) -> dict[str, Any]:
        """A request's JSON object, bounded in size and time. Errors: Refused."""
        limit = self.limits.body_bytes
        if int(request.headers.get("content-length") or 0) > limit:
            raise Refused(413, f"the request is larger than {limit:,} bytes", code="too_large")
        parts, size = [], 0
        try:
            with anyio.fail_after(self.limits.upload_seconds):
                async for part in request.stream():
                    size += len(part)
                    if size > limit:
                        raise Refused(413, f"the request is larger than {limit:,} bytes", code="too_large")
                    parts.append(part)
        except TimeoutError:
            raise Refused(408, "the request's body did not arrive in time", code="timeout") from None
        except ClientDisconnect:
            raise Refused(499, "the client has gone", code="gone") from None
        try:
            body = json.loads(b"".join(parts))
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the body is not JSON: {error}", code="bad_json") from None
        if not isinstance(body, dict):
            raise Refused(400, "the body is not a JSON object", code="bad_json")
        return body

    def _choose(self, body: Mapping[str, Any]) -> str:
        name = body.get("model")
        if name is None and len(self.served) == 1:
            return next(iter(self.served))
        if not isinstance(name, str):
            raise Refused(400, f"name a model: one of {', '.join(self.served)}", code="model_missing")
        if name not in self.served:
            near = did_you_mean(name, self.served)
            have = near or f"there are {', '.join(self.served)}"
            raise Refused(404, f"no model {name!r} is served; {have}", code="model_not_found")
        return name

    async def _forward(self, request: Request, model: str, body: dict[str, Any], began: float) -> Response:
        """Ask the model and pass its answer on as it comes. The slot is given back when it ends."""
        served, path = self.served[model], request.url.path
        async with AsyncExitStack() as stack:
            asking = asyncio.create_task(self._ask(stack, model, served, path, body))
            leaving = asyncio.create_task(_until_gone(request))
            try:
                await asyncio.wait({asking, leaving}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await _end(leaving)
                if not asking.done():
                    await _end(asking)
            if asking.cancelled():
                raise Refused(499, "the client has gone", code="gone")
            upstream, content = asking.result()
            headers = {
                "content-type": upstream.headers.get("content-type", "application/json"),
                "x-luthier-weights": served.backend.weights,
                "x-luthier-adapter": str(served.facts.get("adapter_sha256", "none")),
            }
            if content is not None:
                return _passed(upstream.status_code, content, headers)
            flow = self._flow(stack.pop_all(), upstream, model, path, began)
            return StreamingResponse(flow, upstream.status_code, headers=headers)

    async def _ask(
        self, stack: AsyncExitStack, model: str, served: Served, path: str, body: dict[str, Any]
    ) -> tuple[httpx2.Response, bytes | None]:
        """The answer's head, with its body unless this is streamed."""
        try:
            await stack.enter_async_context(self._slot(model, served.backend))
            now = self.served.get(model)
            if now is None or now.backend is not served.backend:  # dropped while this request waited
                raise Refused(404, f"{model} is no longer served", code="model_not_found")
            served = now  # its adapter may have another number since
            asked = {**body, **served.extra}
            upstream = await stack.enter_async_context(served.backend.ask(path, asked))
            if upstream.headers.get("content-type", "").startswith("text/event-stream"):
                return upstream, None
            return upstream, await upstream.aread()
        except Unreachable as error:
            words = f"{error.message}; {error.hint}" if error.hint else error.message
            raise Refused(503, words, code="unavailable") from None

    async def _flow(
        self, stack: AsyncExitStack, upstream: httpx2.Response, model: str, path: str, began: float
    ) -> AsyncIterator[bytes]:
        """The pieces of a streamed answer. Runs to its end also where the client leaves half-way."""
        status = 499
        first = True
        try:
            async for piece in upstream.aiter_raw():
                if first:
                    self.meters.first_token(model, time.monotonic() - began)
                    first = False
                yield piece
            status = upstream.status_code
        except (Unreachable, httpx2.HTTPError) as error:
            status = 503
            words = json.dumps({"error": {"message": str(error), "type": "server_error", "code": "died"}})
            yield f"data: {words}\n\n".encode()
        finally:
            with anyio.CancelScope(shield=True):
                await stack.aclose()
            self._note(model, path, status, began)

    @asynccontextmanager
    async def _slot(self, model: str, backend: Backend) -> AsyncIterator[None]:
        key = id(backend)
        slots = self._slots.setdefault(key, asyncio.Semaphore(backend.slots))
        waiting = self._waiting.get(key, 0)
        if slots.locked() and waiting >= self.limits.waiting:
            raise Refused(
                429,
                f"{waiting} requests wait for {model} already",
                code="busy",
                headers={"Retry-After": "2"},
            )
        self._waiting[key] = waiting + 1
        self.meters.waiting(model, self._waiting[key])
        try:
            with anyio.fail_after(self.limits.wait_seconds):
                await slots.acquire()
        except TimeoutError:
            raise Refused(
                503,
                f"no slot of {model} was free within {self.limits.wait_seconds:,.0f} s",
                code="busy",
                headers={"Retry-After": "5"},
            ) from None
        finally:
            self._waiting[key] -= 1
            self.meters.waiting(model, self._waiting[key])
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            slots.release()

    @asynccontextmanager
    async def alone(self, backend: Backend) -> AsyncIterator[None]:
        """Hold all slots of a model: what was asked is answered, what comes waits. Errors: Refused."""
        slots = self._slots.setdefault(id(backend), asyncio.Semaphore(backend.slots))
        held = 0
        try:
            with anyio.fail_after(self.limits.wait_seconds):
                while held < backend.slots:
                    await slots.acquire()
                    held += 1
            yield
        except TimeoutError:
            raise Refused(503, "the model did not come to rest in time", code="busy") from None
        finally:
            for _ in range(held):
                slots.release()

    def _note(self, model: str, path: str, status: int, began: float) -> None:
        seconds = time.monotonic() - began
        self.meters.request(model, path, status, seconds)
        entry = LogEntry(time.time(), model, path, status, seconds)
        self.log.append(entry)
        if self._on_request is not None:
            self._on_request(entry)

    # ---- what it says of itself -------------------------------------------------------------------

    async def _models(self, _request: Request) -> Response:
        data = [
            {
                "id": name,
                "object": "model",
                "created": int(self._started),
                "owned_by": "luthier",
                "weights": served.backend.weights,
                "endpoints": sorted(served.backend.paths),
                **served.facts,
            }
            for name, served in self.served.items()
        ]
        return JSONResponse({"object": "list", "data": data})

    async def _health(self, _request: Request) -> Response:
        states = {name: served.backend.state for name, served in self.served.items()}
        well = all(state == "ready" for state in states.values())
        troubles = {n: s.backend.trouble for n, s in self.served.items() if s.backend.trouble}
        body = {"status": "ok" if well else "degraded", "models": states, "troubles": troubles}
        return JSONResponse(body, status_code=200 if well else 503)

    async def _metrics(self, _request: Request) -> Response:
        tokens = {name: await served.backend.tokens() for name, served in self.served.items()}
        return PlainTextResponse(self.meters.text(tokens), media_type="text/plain; version=0.0.4")


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _end(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError, Refused):
        await task


def _passed(status: int, content: bytes, headers: dict[str, str]) -> Response:
    """An answer of the model as it is; its refusals get the shape of all others."""
    if status < 400:
        return Response(content, status, headers)
    try:
        error = json.loads(content)["error"]
        message = error["message"] if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError):
        message = content.decode("utf-8", "replace")[:500]
    # llama.cpp answers 500 to a template or grammar that the request itself broke
    return problem(status, message, code="refused_by_model")


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return problem(error.status, error.message, code=error.code, headers=error.headers)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = (
        f"{request.method} {request.url.path} is not here; see /v1/models"
        if error.status_code == 404
        else error.detail
    )
    code = {404: "not_found", 405: "wrong_method"}.get(error.status_code, "error")
    return problem(error.status_code, words, code=code, headers=error.headers)


async def _fault(_request: Request, error: Exception) -> Response:
    return problem(500, f"a fault of the server: {type(error).__name__}", code="fault")
