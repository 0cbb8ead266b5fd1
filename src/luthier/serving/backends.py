"""What stands behind the gateway: a model in a child process, reached over loopback HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal, Protocol

import httpx2

from luthier.errors import LuthierError, Unreachable
from luthier.llamacpp.runtime import LlamaServer, ServerSettings

State = Literal["loading", "ready", "down"]
RESTARTS = 3
"""Times in a row that a dead model is loaded again before it counts as down."""
SETTLED = 60.0
"""Seconds of life after which earlier deaths no longer count."""


class Backend(Protocol):
    """One model that answers requests of the OpenAI shape."""

    paths: frozenset[str]
    """What it answers: ``/v1/chat/completions``, ``/v1/embeddings``..."""
    slots: int
    """Requests that it works on at once."""
    weights: str
    """SHA-256 of the weights that answer."""

    @property
    def state(self) -> State: ...

    @property
    def trouble(self) -> str:
        """Why it is down, in words; empty while it is not."""

    async def start(self) -> None:
        """Load the model. Errors: LuthierError."""

    async def close(self) -> None:
        """End it and whatever it does."""

    def ask(
        self, path: str, body: Mapping[str, Any]
    ) -> contextlib.AbstractAsyncContextManager[httpx2.Response]:
        """Send a request; the answer's body is read as it comes. Errors: Unreachable."""

    async def tokens(self) -> dict[str, float]:
        """Counters of tokens read and written, by name."""


GENERATING = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"})
EMBEDDING = frozenset({"/v1/embeddings"})


class LlamaBackend:
    """A GGUF file in llama.cpp. A model that dies is loaded again."""

    def __init__(self, server: LlamaServer, *, weights: str, timeout: float = 600.0) -> None:
        """timeout: seconds without a byte after which a request counts as failed."""
        self.server = server
        self.weights = weights
        self.slots = server.settings.slots
        self.paths = EMBEDDING if server.settings.embedding else GENERATING
        self._timeout = timeout
        self._state: State = "loading"
        self._trouble = ""
        self._client: httpx2.AsyncClient | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def state(self) -> State:
        return self._state

    @property
    def trouble(self) -> str:
        return self._trouble

    async def start(self) -> None:
        await self._load()
        self._watch = asyncio.create_task(self._keep_alive())

    async def _load(self) -> None:
        await asyncio.to_thread(self.server.start)
        if self._client is not None:
            await self._client.aclose()
        self._client = httpx2.AsyncClient(
            base_url=self.server.url,
            headers={"Authorization": f"Bearer {self.server.api_key}"},
            timeout=httpx2.Timeout(self._timeout, connect=10),
            # llama.cpp ends a connection after some requests, and one that was kept may be ending just
            # as the next request goes out. A new one costs nothing on loopback.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
            trust_env=False,  # a proxy of the environment has no business between us and our child
        )
        self._state, self._trouble = "ready", ""

    async def _keep_alive(self) -> None:
        deaths = 0
        born = time.monotonic()
        while True:
            await asyncio.sleep(0.25)
            if self.server.alive:
                continue
            deaths = 1 if time.monotonic() - born > SETTLED else deaths + 1
            self._trouble = f"the model died: {self.server.log_tail().splitlines()[-1]}"
            if deaths > RESTARTS:
                self._state = "down"
                return
            self._state = "loading"
            await asyncio.to_thread(self.server.close)
            try:
                await self._load()
            except LuthierError as error:
                self._state, self._trouble = "down", str(error)
                return
            born = time.monotonic()

    async def reload(self, settings: ServerSettings) -> None:
        """Load the same file with other settings; with the old ones again where that fails.

        Nothing may be under way. Errors: LuthierError.
        """
        before = self.server.settings
        await self._unwatch()
        self._state = "loading"
        await asyncio.to_thread(self.server.close)
        try:
            self.server.settings = settings
            await self._load()
        except LuthierError:
            self.server.settings = before
            await self._load()
            raise
        finally:
            self._watch = asyncio.create_task(self._keep_alive())

    async def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch

    async def close(self) -> None:
        await self._unwatch()
        if self._client is not None:
            await self._client.aclose()
        await asyncio.to_thread(self.server.close)
        self._state = "down"

    @asynccontextmanager
    async def ask(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[httpx2.Response]:
        if self._client is None or self._state != "ready":
            raise Unreachable(self._trouble or "the model is not loaded yet", hint="try again in a moment")
        try:
            async with self._client.stream("POST", path, json=dict(body)) as response:
                yield response
        except httpx2.TimeoutException:
            raise Unreachable(
                f"the model said nothing for {self._timeout:,.0f} s", hint="allow more time, or fewer tokens"
            ) from None
        except httpx2.HTTPError as error:
            raise Unreachable(
                f"the model ended while it answered ({type(error).__name__})",
                hint="it is loaded again: retry",
            ) from None

    async def tokens(self) -> dict[str, float]:
        if self._client is None or self._state != "ready":
            return {}
        try:
            text = (await self._client.get("/metrics", timeout=2)).text
        except httpx2.HTTPError:
            return {}
        found = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("llamacpp:"))
        names = {"prompt": "llamacpp:prompt_tokens_total", "generated": "llamacpp:tokens_predicted_total"}
        return {name: float(found[key]) for name, key in names.items() if key in found}
