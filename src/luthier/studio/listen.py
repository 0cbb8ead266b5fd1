"""Start the studio: where it may listen, its port, its link."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import uvicorn

from luthier.errors import UsageError
from luthier.serving.guard import LOOPBACK
from luthier.serving.listen import open_port
from luthier.studio.access import Access
from luthier.studio.app import create_app
from luthier.studio.settings import StudioSettings
from luthier.studio.web import STATIC


def settings_for(
    host: str,
    port: int,
    *,
    names: tuple[str, ...] = (),
    certificate: Path | None = None,
    insecure: bool = False,
    data_roots: tuple[Path, ...] = (),
) -> StudioSettings:
    """Settings for where the studio is to listen.

    Beyond loopback it needs TLS, or the word that none is wanted, and the names under which it will be
    reached. Errors: UsageError.
    """
    if host not in LOOPBACK:
        if certificate is None and not insecure:
            raise UsageError(
                f"listening on {host} would send the studio's sessions over the network in the clear",
                hint="add --tls-cert and --tls-key, or --allow-insecure-http where something else encrypts; "
                "or keep to this machine and reach it by `ssh -L`",
            )
        if not names:
            raise UsageError(
                f"listening on {host} lets other machines ask, and the studio does not know its name there",
                hint="add --allowed-host NAME for each name or address under which it will be reached",
            )
    return StudioSettings(
        host=host,
        port=port,
        hosts=LOOPBACK | set(names),
        secure=certificate is not None,
        data_roots=tuple(root.expanduser().resolve() for root in data_roots),
    )


def login_link(settings: StudioSettings, name: str | None = None) -> str:
    """A link that logs one browser in, within ten minutes. The code is in the fragment: no log keeps it."""
    host = name or (settings.host if settings.host in LOOPBACK else sorted(settings.hosts - LOOPBACK)[0])
    shown = f"[{host}]" if ":" in host else host
    scheme = "https" if settings.secure else "http"
    return f"{scheme}://{shown}:{settings.port}/login#t={Access(settings.home).login_code()}"


def demand_assets() -> None:
    """Errors: UsageError where a clone has not brought the files that pages are made with."""
    if not (STATIC / "vendor" / "versions.txt").is_file():
        raise UsageError(
            "the studio's htmx, uPlot and fonts are not here: they come with the wheel, or by one command",
            hint="in a clone: make studio (or python tools/studio_assets.py)",
        )


def serve(
    settings: StudioSettings,
    *,
    ready: Callable[[StudioSettings], None],
    certificate: Path | None = None,
    key: Path | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM. ready: called with the settings and the port that was taken."""
    demand_assets()
    listener: socket.socket = open_port(settings.host, settings.port)
    settings = replace(settings, port=listener.getsockname()[1])
    config = uvicorn.Config(
        create_app(settings),
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=3,
        ws="websockets-sansio",
        ws_max_size=1 << 16,
        ws_per_message_deflate=False,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        lifespan="on",
    )
    ready(settings)
    uvicorn.Server(config).run(sockets=[listener])
