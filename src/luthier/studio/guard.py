"""Every request passes here first: host name, origin, session or key, and the headers of every answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse, Response

from luthier.studio.access import Access
from luthier.studio.problems import problem
from luthier.studio.settings import StudioSettings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN = frozenset({"/login", "/api/v1/login", "/health", "/favicon.ico"})
"""Paths that need no session; so do the files under /static/."""


def cookie_name(settings: StudioSettings) -> str:
    """The session cookie's name: browsers share cookies among all ports of a host."""
    return f"luthier_{settings.port}"


class Guard:
    """ASGI middleware over everything, WebSockets included."""

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        *,
        settings: StudioSettings,
        access: Access,
    ) -> None:
        self.app, self.settings, self.access = app, settings, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if not scope["path"].startswith("/static/"):
                    headers.setdefault("cache-control", "no-store")
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, with_headers)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refusal(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            name = ""
        if name not in self.settings.hosts:
            return problem(
                421,
                "wrong-host",
                f"this studio does not go by the name {name!r}",
                "open it under the address that it printed, or start it with --allowed-host",
            )
        unsafe = scope["type"] == "websocket" or scope["method"] not in SAFE
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        # Under no-referrer a browser sends its own forms with the origin "null"; where they come from it
        # still says in a header that no page can set.
        own_form = origin == "null" and site == "same-origin"
        foreign = origin is not None and (urlsplit(origin).netloc != host or site == "cross-site")
        if foreign and not own_form and unsafe:
            return problem(403, "foreign-origin", f"pages of {origin} may not ask this studio", None)
        if unsafe and site not in (None, "same-origin", "none"):
            return problem(403, "foreign-origin", "pages of other sites may not ask this studio", None)
        return self._stranger(scope, headers, unsafe=unsafe)

    def _stranger(self, scope: Scope, headers: Headers, *, unsafe: bool) -> Response | None:
        """The refusal of whoever may not ask this, or None; leaves what they may in ``scope["allowed"]``."""
        path: str = scope["path"]
        given = headers.get("authorization", "")
        if given[:7].lower() == "bearer ":
            allowed = self.access.scope_of(given[7:].strip())
            if allowed is None:
                return problem(401, "wrong-token", "the token or key is wrong", "see Settings for keys")
            if allowed == "infer" and not path.startswith("/v1/") and path not in OPEN:
                return problem(403, "wrong-scope", "this key is for /v1 alone", "use a key of scope admin")
            scope["allowed"] = allowed
            return None
        cookies = cookie_parser(headers.get("cookie", ""))
        if self.access.is_session(cookies.get(cookie_name(self.settings), "")):
            # A browser always says where an unsafe request comes from; what does not is no browser of ours.
            if unsafe and headers.get("origin") is None and headers.get("sec-fetch-site") is None:
                return problem(403, "no-origin", "a session's requests must name their origin", None)
            scope["allowed"] = "admin"
            return None
        if path in OPEN or path.startswith("/static/"):
            return None
        page = scope["type"] == "http" and not unsafe and not path.startswith(("/api/", "/v1/", "/live"))
        if page:
            asked = path + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else "")
            return RedirectResponse(f"/login?next={quote(asked)}", 303)
        return problem(
            401,
            "not-logged-in",
            "the studio does not know who asks",
            "log in, or send `Authorization: Bearer TOKEN`",
            headers={"WWW-Authenticate": "Bearer"},
        )
