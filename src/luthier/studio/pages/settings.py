"""Settings: secrets that are written and never shown, keys, folders, versions."""

from __future__ import annotations

import asyncio
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from luthier.errors import LuthierError
from luthier.files import cache_dir
from luthier.llamacpp.setup import is_set_up
from luthier.runs.deploying import deployments_root
from luthier.runs.registry import registry_root
from luthier.runs.servers import servers_root
from luthier.studio.access import Access, Scope
from luthier.studio.problems import status_of
from luthier.studio.services.forms import Sent
from luthier.studio.services.secrets import remove_token, set_token, token_state
from luthier.studio.system import hardware
from luthier.studio.web import render, settings_of

router = APIRouter()
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "tokenizers",
    "huggingface_hub",
    "xllamacpp",
    "fastapi",
    "uvicorn",
)


def access_of(request: Request) -> Access:
    """Who may what, in the studio that a request came to."""
    found = request.app.state.access
    assert isinstance(found, Access)
    return found


@router.get("/settings")
def settings(request: Request) -> Response:
    """All settings."""
    return _page(request)


def _page(request: Request, *, secret: str = "", error: LuthierError | None = None) -> Response:
    own = settings_of(request)
    folders = {
        "Runs": ("LUTHIER_RUNS", own.runs),
        "Studio": ("LUTHIER_STUDIO", own.home),
        "Registry": ("LUTHIER_REGISTRY", registry_root()),
        "Servers": ("LUTHIER_SERVERS", servers_root()),
        "Deployments": ("LUTHIER_DEPLOYMENTS", deployments_root()),
        "Cache": ("LUTHIER_CACHE", cache_dir()),
    }
    values: dict[str, Any] = {
        "token": token_state(),
        "keys": access_of(request).keys(),
        "secret": secret,
        "folders": [(name, variable, path, _free(path)) for name, (variable, path) in folders.items()],
        "versions": _versions(),
        "machine": hardware(own.runs),
        "converter": is_set_up(),
        "studio": own,
        "error": error,
    }
    return render(
        request, "settings.html", values, page="settings", status=status_of(error) if error else 200
    )


def _free(path: Path) -> int:
    """Bytes free where a folder is, or would be."""
    return shutil.disk_usage(next(one for one in (path, *path.parents) if one.exists())).free


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@router.post("/settings/token")
async def token(request: Request, form: Sent) -> Response:
    """Keep or remove the Hugging Face token."""
    try:
        if form.one("deed") == "remove":
            await asyncio.to_thread(remove_token)
        else:
            await asyncio.to_thread(set_token, form.one("token"))
    except LuthierError as error:
        return await asyncio.to_thread(_page, request, error=error)
    return RedirectResponse("/settings#token", 303)


@router.post("/settings/keys")
async def key(request: Request, form: Sent) -> Response:
    """Make a key, whose secret is shown this once, or take one back."""
    access = access_of(request)
    try:
        if taken := form.one("remove"):
            await asyncio.to_thread(access.remove_key, taken)
            return RedirectResponse("/settings#keys", 303)
        scope: Scope = "admin" if form.one("scope") == "admin" else "infer"
        secret = await asyncio.to_thread(access.add_key, form.one("name"), scope)
    except LuthierError as error:
        return await asyncio.to_thread(_page, request, error=error)
    return await asyncio.to_thread(_page, request, secret=secret)
