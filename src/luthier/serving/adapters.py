"""Adapters on one base that come and go while it serves, asked for as vLLM has it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from luthier.errors import LuthierError
from luthier.serving.backends import LlamaBackend
from luthier.serving.gateway import Gateway, Refused, Served

if TYPE_CHECKING:
    from starlette.requests import Request

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter's file and what ``/v1/models`` says of it."""

    path: Path
    facts: Mapping[str, Any]


def only_adapter(chosen: int | None, count: int) -> dict[str, Any]:
    """What a request says so that one adapter answers, or none."""
    return {"lora": [{"id": i, "scale": float(i == chosen)} for i in range(count)]} if count else {}


class LiveAdapters:
    """Loads and drops adapters of one served base.

    llama.cpp takes adapters as it starts, so a new one means that the base is loaded again: requests
    under way are answered first, those that come meanwhile wait. A dropped one is not asked any more, and
    leaves memory when the next is loaded.
    """

    def __init__(
        self,
        gateway: Gateway,
        base: str,
        adapters: Mapping[str, Adapter],
        find: Callable[[str], Adapter],
    ) -> None:
        """base: the base's own name. find: an adapter by what a request names; errors: LuthierError."""
        served = gateway.served[base]
        assert isinstance(served.backend, LlamaBackend)
        self._gateway, self._base, self._backend = gateway, base, served.backend
        self._find, self._facts = find, dict(served.facts)
        self._loaded = dict(adapters)
        """All that are in the process, in its order."""
        self._lock = asyncio.Lock()
        gateway.adapters = self

    def routes(self) -> list[Route]:
        """The two paths of vLLM."""
        return [Route(LOAD, self._load, methods=["POST"]), Route(UNLOAD, self._unload, methods=["POST"])]

    async def load(self, name: str, target: str) -> None:
        """Answer by a name with the adapter of a run. Errors: Refused, LuthierError."""
        async with self._lock:
            if name in self._gateway.served:
                raise Refused(400, f"{name} is served already; unload it first", code="name_taken")
            adapter = await asyncio.to_thread(self._find, target)
            kept = {one: found for one, found in self._loaded.items() if one in self._gateway.served}
            files = tuple((str(found.path), 1.0) for found in [*kept.values(), adapter])
            async with self._gateway.alone(self._backend):
                await self._backend.reload(replace(self._backend.server.settings, adapters=files))
                self._loaded = {**kept, name: adapter}
                self._name_all()

    async def unload(self, name: str) -> None:
        """Answer by that name no longer. Errors: Refused."""
        async with self._lock:
            if name not in self._gateway.served or name not in self._loaded:
                loaded = ", ".join(one for one in self._loaded if one in self._gateway.served) or "none"
                raise Refused(
                    404, f"no adapter {name!r} is loaded; there are {loaded}", code="model_not_found"
                )
            await self._gateway.drop(name)

    def _name_all(self) -> None:
        count = len(self._loaded)
        served = self._gateway.served
        served[self._base] = replace(served[self._base], extra=only_adapter(None, count))
        for index, (name, adapter) in enumerate(self._loaded.items()):
            facts = {**self._facts, **adapter.facts}
            served[name] = Served(self._backend, only_adapter(index, count), facts)

    async def _load(self, request: Request) -> Response:
        name, target = await self._words(request, "lora_name", "lora_path")
        try:
            await self.load(name, target)
        except LuthierError as error:
            words = f"{error.message}; {error.hint}" if error.hint else error.message
            raise Refused(400, words, code="adapter_refused") from None
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: Request) -> Response:
        (name,) = await self._words(request, "lora_name")
        await self.unload(name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def _words(self, request: Request, *keys: str) -> list[str]:
        body = await self._gateway.body(request)
        found = [body.get(key) for key in keys]
        for key, value in zip(keys, found, strict=True):
            if not isinstance(value, str) or not value:
                raise Refused(400, f"{key} is missing", code="bad_request")
        return [str(value) for value in found]
