"""Open the port and serve until asked to stop."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from luthier.errors import UsageError
from luthier.serving.gateway import Gateway
from luthier.serving.guard import LOOPBACK, Rules

GRACE = 30
"""Seconds that answers under way have to end after the server is asked to stop."""


def rules_for(host: str, *, api_key: str | None, names: tuple[str, ...] = ()) -> Rules:
    """Who may ask, by where the server listens.

    Beyond loopback there is always a key, and the names under which it is reached must be said.
    Errors: UsageError.
    """
    if host in LOOPBACK:
        return Rules(api_key=api_key, hosts=LOOPBACK | set(names))
    if not names and host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not listened on
        raise UsageError(
            f"listening on {host} lets other machines ask, and the server does not know its name there",
            hint="add --allowed-host NAME for each name or address under which it will be reached",
        )
    return Rules(api_key=api_key or secrets.token_urlsafe(32), hosts=LOOPBACK | {host} | set(names))


def open_port(host: str, port: int) -> socket.socket:
    """A listening socket. Errors: UsageError when the port is none, taken or not ours."""
    if not 0 <= port <= 65535:
        raise UsageError(f"{port} is not a port", hint="choose --port 1024 to 65535 (0 takes a free one)")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UsageError(
            f"cannot listen on {host}:{port}: {(error.strerror or str(error)).lower()}",
            hint="stop what holds it, or choose another --port (0 takes a free one)",
        ) from None
    listener.listen(1024)
    return listener


def serve(gateway: Gateway, listener: socket.socket, *, ready: Callable[[], None]) -> None:
    """Serve until SIGINT or SIGTERM; answers under way are given time to end, a second signal ends them.

    ready: called once every model is loaded and requests are taken. Errors: LuthierError of a model
    that does not load.
    """
    config = uvicorn.Config(
        gateway.app(),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
        timeout_keep_alive=30,
        lifespan="on",
    )
    asyncio.run(_serve(gateway, uvicorn.Server(config), listener, ready))


async def _serve(
    gateway: Gateway, server: uvicorn.Server, listener: socket.socket, ready: Callable[[], None]
) -> None:
    # Loaded before uvicorn starts: its own start-up would print a traceback where a model does not load.
    await gateway.start()
    try:
        running = asyncio.create_task(_quietly(server, listener))
        while not server.started and not running.done():
            await asyncio.sleep(0.01)
        if server.started:
            ready()
        await running
    finally:
        await gateway.close()


async def _quietly(server: uvicorn.Server, listener: socket.socket) -> None:
    """Run with our own signals: uvicorn's raise them again when it is done."""

    def stop(number: int, frame: FrameType | None) -> None:
        server.handle_exit(number, frame)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await server._serve([listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
