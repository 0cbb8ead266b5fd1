"""Embedders, rerankers and classifiers behind the gateway, in a torch process of their own."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import httpx2

from luthier.errors import ToolchainError, Unreachable
from luthier.serving.backends import State

Kind = Literal["embed", "rerank", "classify"]
PATHS: dict[Kind, str] = {"embed": "/v1/embeddings", "rerank": "/v1/rerank", "classify": "/v1/classify"}
MOST_INPUTS = 2048
"""Texts of one request, as OpenAI's own limit."""


class BadRequest(Exception):
    """A body that cannot be answered, in words for its sender."""


class TorchBackend:
    """One saved model in a process of its own; requests are answered one after another.

    command: starts the process, which speaks JSON lines: ``{"ready": true}`` once the model is loaded,
    then for each ``{"inputs": [...]}`` one line with ``answers`` and ``tokens``, or with ``failure``.
    environment: of the process. Errors of :meth:`start`: ToolchainError with the process's last words.
    """

    slots = 1

    def __init__(
        self,
        kind: Kind,
        folder: Path,
        *,
        command: Sequence[str],
        weights: str,
        environment: Mapping[str, str],
    ) -> None:
        self.kind, self.folder, self.weights = kind, folder, weights
        self._command = tuple(command)
        self.paths = frozenset({PATHS[kind]})
        self._environment = dict(environment)
        self._child: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._state: State = "loading"
        self._trouble = ""
        self._words: list[str] = []
        self._reading: asyncio.Task[None] | None = None
        self._tokens = 0

    @property
    def state(self) -> State:
        return self._state

    @property
    def trouble(self) -> str:
        return self._trouble

    async def start(self) -> None:
        self._child = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment,
            limit=1 << 28,
            start_new_session=True,
        )
        self._reading = asyncio.create_task(self._listen(self._child))
        try:
            said = await self._line()
        except Unreachable as error:
            said = {"failure": {"message": error.message, "hint": None}}
        if "failure" in said:
            await self.close()
            failure = said["failure"]
            raise ToolchainError(
                f"{self.folder.name} does not load: {failure['message']}", hint=failure["hint"]
            )
        self._state, self._trouble = "ready", ""

    async def _listen(self, child: asyncio.subprocess.Process) -> None:
        """Keep the process's last words, and its pipe empty."""
        assert child.stderr is not None
        while line := await child.stderr.readline():
            self._words = [*self._words[-7:], line.decode("utf-8", "replace").rstrip()]

    async def _line(self) -> dict[str, Any]:
        assert self._child is not None
        assert self._child.stdout is not None
        line = await self._child.stdout.readline()
        if not line:
            self._state, self._trouble = "down", self._words[-1] if self._words else "its process ended"
            raise Unreachable(self._trouble, hint="start the server again")
        found: dict[str, Any] = json.loads(line)
        return found

    async def close(self) -> None:
        child, self._child = self._child, None
        if child is not None and child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
        if self._reading is not None:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading
        self._state = "down"

    @asynccontextmanager
    async def ask(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[httpx2.Response]:
        del path  # there is one
        try:
            inputs, answer = _READ[self.kind](body)
        except BadRequest as error:
            yield httpx2.Response(400, json={"error": {"message": str(error)}})
            return
        # An answer that nobody waits for any more is still read: the next one would get it otherwise.
        found = await asyncio.shield(asyncio.ensure_future(self._answer(inputs)))
        if "failure" in found:
            yield httpx2.Response(400, json={"error": {"message": found["failure"]["message"]}})
            return
        self._tokens += found["tokens"]
        usage = {"prompt_tokens": found["tokens"], "total_tokens": found["tokens"]}
        values = {"model": body.get("model", self.folder.name), **answer(found["answers"]), "usage": usage}
        yield httpx2.Response(200, json=values)

    async def _answer(self, inputs: list[Any]) -> dict[str, Any]:
        async with self._lock:
            if self._child is None or self._child.stdin is None or self._state == "down":
                raise Unreachable(self._trouble or "the model is not loaded", hint="start the server again")
            self._child.stdin.write(json.dumps({"inputs": inputs}).encode() + b"\n")
            with contextlib.suppress(ConnectionError):  # told better by what follows
                await self._child.stdin.drain()
            return await self._line()

    async def tokens(self) -> dict[str, float]:
        return {"prompt": float(self._tokens)}


Read = tuple[list[Any], Callable[[list[Any]], dict[str, Any]]]


def _texts(value: object, name: str) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise BadRequest(f"{name} is a text or a list of texts")
    if len(texts) > MOST_INPUTS:
        raise BadRequest(f"{len(texts):,} texts in one request; {MOST_INPUTS:,} are taken")
    if any(not text.strip() for text in texts):
        raise BadRequest(f"a text of {name} is empty")
    return texts


def _embeddings(body: Mapping[str, Any]) -> Read:
    texts = _texts(body.get("input"), "input")
    dims, form = body.get("dimensions"), body.get("encoding_format", "float")
    if form not in ("float", "base64"):
        raise BadRequest("encoding_format is float or base64")
    if dims is not None and (not isinstance(dims, int) or dims < 1):
        raise BadRequest("dimensions is a number of at least 1")

    def answer(vectors: list[Any]) -> dict[str, Any]:
        data = [
            {"object": "embedding", "index": index, "embedding": _form(_cut(vector, dims), form)}
            for index, vector in enumerate(vectors)
        ]
        return {"object": "list", "data": data}

    return texts, answer


def _cut(vector: list[float], dims: int | None) -> list[float]:
    """The first so many numbers, at unit length again."""
    if dims is None or dims >= len(vector):
        return vector
    part = vector[:dims]
    length = sum(value * value for value in part) ** 0.5 or 1.0
    return [value / length for value in part]


def _form(vector: list[float], form: str) -> list[float] | str:
    if form == "float":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _ranking(body: Mapping[str, Any]) -> Read:
    query, given = body.get("query"), body.get("documents")
    if not isinstance(query, str) or not query.strip():
        raise BadRequest("query is a text")
    if isinstance(given, list):
        given = [one.get("text") if isinstance(one, dict) else one for one in given]
    texts = _texts(given, "documents")
    top = body.get("top_n", len(texts))
    if not isinstance(top, int) or top < 1:
        raise BadRequest("top_n is a number of at least 1")

    def answer(scores: list[Any]) -> dict[str, Any]:
        order = sorted(range(len(scores)), key=lambda index: -scores[index])[:top]
        told = bool(body.get("return_documents"))
        results = [
            {
                "index": index,
                "relevance_score": scores[index],
                **({"document": {"text": texts[index]}} if told else {}),
            }
            for index in order
        ]
        return {"results": results}

    return [[query, text] for text in texts], answer


def _classes(body: Mapping[str, Any]) -> Read:
    texts = _texts(body.get("input"), "input")

    def answer(found: list[Any]) -> dict[str, Any]:
        data = [{"object": "classification", "index": index, **one} for index, one in enumerate(found)]
        return {"object": "list", "data": data}

    return texts, answer


_READ: dict[Kind, Callable[[Mapping[str, Any]], Read]] = {
    "embed": _embeddings,
    "rerank": _ranking,
    "classify": _classes,
}
