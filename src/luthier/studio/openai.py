"""``/v1`` of the studio: OpenAI's API over every server that it, or a command, has started.

A request names a model as it is served, ``run:ID``, ``run:ID@STEP`` or ``base:ID``; it is passed on to the
server that holds it, with that server's own key. Each answer says which weights gave it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse

from luthier.runs.servers import ServerDirectory, list_servers
from luthier.schema.server import ServedModel

router = APIRouter(prefix="/v1", tags=["openai"], include_in_schema=False)
PATHS = frozenset({"chat/completions", "completions", "embeddings", "rerank", "classify"})
LARGEST = 32 << 20
"""Bytes of one request: pictures are sent in it."""
TIMEOUT = httpx2.Timeout(600.0, connect=10.0)


def ready() -> list[tuple[ServerDirectory, str, ServedModel]]:
    """Server, its address and model, for every model that takes requests now."""
    found = []
    for server in list_servers():
        status = server.status
        if status.state == "ready":
            found += [(server, status.url, model) for model in status.models]
    return found


@router.get("/models")
def models() -> dict[str, Any]:
    """Every model that takes requests now."""
    data = [
        {
            "id": model.name,
            "object": "model",
            "created": int(server.status.created),
            "owned_by": "luthier",
            "kind": model.kind,
            "weights": model.weights,
            **{key: value for key, value in model.facts.items() if key in ("run", "base", "step")},
        }
        for server, _, model in ready()
    ]
    return {"object": "list", "data": data}


@router.post("/{path:path}")
async def ask(request: Request, path: str) -> Response:
    """Pass a request on to the server of its model."""
    if path not in PATHS:
        return refusal(404, f"there is no /v1/{path}", "not_found")
    body = await _body(request)
    if isinstance(body, Response):
        return body
    name = body.get("model")
    there = await run_in_threadpool(ready)
    chosen = next((one for one in there if is_named(str(name), one[2])), None)
    if chosen is None:
        names = (
            ", ".join(model.name for _, _, model in there) or "none is served: start one on the Serve page"
        )
        return refusal(404, f"the model {name!r} is not served; there are: {names}", "model_not_found")
    server, url, model = chosen
    body["model"] = model.name
    key = await run_in_threadpool(lambda: server.key)
    client = httpx2.AsyncClient(timeout=TIMEOUT, trust_env=False)
    asked = client.build_request(
        "POST", f"{url}/v1/{path}", json=body, headers={"authorization": f"Bearer {key}"}
    )
    try:
        answer = await client.send(asked, stream=True)
    except httpx2.HTTPError as error:
        await client.aclose()
        return refusal(502, f"{server.id} does not answer: {error}", "server_unreachable")
    headers = {"x-luthier-weights": model.weights}
    if answer.headers.get("content-type", "").startswith("text/event-stream"):
        return StreamingResponse(
            _events(client, answer, model), answer.status_code, headers, media_type="text/event-stream"
        )
    try:
        content = await answer.aread()
        values = stamped(json.loads(content), model)
    except (httpx2.HTTPError, ValueError):
        return refusal(502, f"{server.id} broke off its answer", "server_unreachable")
    finally:
        await client.aclose()
    return JSONResponse(values, answer.status_code, headers=headers)


async def _body(request: Request) -> dict[str, Any] | Response:
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > LARGEST:
            return refusal(413, f"a request has at most {LARGEST >> 20} MiB", "too_large")
    try:
        values = json.loads(content)
    except ValueError:
        return refusal(400, "the body is no JSON", "invalid_json")
    if not isinstance(values, dict) or not isinstance(values.get("model"), str):
        return refusal(400, "the body names no model", "missing_model")
    return values


async def _events(
    client: httpx2.AsyncClient, answer: httpx2.Response, model: ServedModel
) -> AsyncIterator[str]:
    """A stream of answers, each part with the weights that gave it."""
    try:
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                with contextlib.suppress(ValueError):
                    line = f"data: {json.dumps(stamped(json.loads(line[6:]), model))}"  # noqa: PLW2901
            yield f"{line}\n"
    finally:
        await answer.aclose()
        await client.aclose()


def is_named(name: str, model: ServedModel) -> bool:
    """Whether a request's words mean a model that is served."""
    if name == model.name:
        return True
    kind, _, rest = name.partition(":")
    if kind == "run":
        run, _, step = rest.partition("@")
        known = str(model.facts.get("run", ""))
        right_step = not step or str(model.facts.get("step", "")) == step
        return bool(run) and known.startswith(run) and right_step
    return kind == "base" and rest != "" and "run" not in model.facts and model.facts.get("base") == rest


def stamped(values: Any, model: ServedModel) -> Any:
    """An answer that says which weights gave it."""
    if isinstance(values, dict) and "error" not in values:
        values["system_fingerprint"] = values.get("system_fingerprint") or f"fp_{model.weights[:16]}"
        values["weights"] = {"sha256": model.weights, **model.facts}
    return values


def refusal(status: int, message: str, code: str) -> Response:
    """A failure as OpenAI's clients read it."""
    body = {"message": message, "type": "invalid_request_error", "code": code, "param": None}
    return JSONResponse({"error": body}, status)
