"""Who may ask: the key, the host name, and nobody else's web page."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, slots=True)
class Rules:
    """Conditions of every request."""

    api_key: str | None = None
    """Asked for as ``Authorization: Bearer``; None asks for none (loopback only)."""
    hosts: frozenset[str] = LOOPBACK
    """Names under which the server may be reached: a page that points its own name at this machine
    (DNS rebinding) is turned away."""
    origins: frozenset[str] = frozenset()
    """Web pages that may ask besides those of the server itself."""


class Guard:
    """ASGI middleware that turns away what :class:`Rules` do not allow."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], *, rules: Rules) -> None:
        self.app, self.rules = app, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(Headers(scope=scope), scope["path"])
        if refusal is None:
            await self.app(scope, receive, send)
            return
        status, message, code = refusal
        body = {"error": {"message": message, "type": "invalid_request_error", "code": code, "param": None}}
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
        await JSONResponse(body, status, headers=headers)(scope, receive, send)

    def _refusal(self, headers: Headers, path: str) -> tuple[int, str, str] | None:
        host = urlsplit(f"//{headers.get('host', '')}").hostname or ""
        if host not in self.rules.hosts:
            return 421, f"this server does not go by the name {host!r}", "wrong_host"
        origin = headers.get("origin")
        own = origin is None or urlsplit(origin).netloc == headers.get("host")
        if not own and origin not in self.rules.origins:
            return 403, f"pages of {origin} may not ask this server", "foreign_origin"
        if self.rules.api_key is None or path == "/health":
            return None
        given = headers.get("authorization", "").removeprefix("Bearer ").strip()
        given = given or headers.get("x-api-key", "")  # as Anthropic's clients send it
        if not hmac.compare_digest(given.encode(), self.rules.api_key.encode()):
            return 401, "the API key is missing or wrong", "invalid_api_key"
        return None
