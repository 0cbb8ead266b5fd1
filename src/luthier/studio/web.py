"""Pages: what every one of them is rendered with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from starlette.responses import HTMLResponse, Response

from luthier.studio.settings import StudioSettings
from luthier.words import duration, memory, readable

HERE = Path(__file__).parent
STATIC = HERE / "static"


@dataclass(frozen=True, slots=True)
class Nav:
    """One entry of the sidebar."""

    page: str
    title: str
    href: str
    group: str = ""


NAV = (
    Nav("home", "Home", "/"),
    Nav("advise", "Advise", "/advise"),
    Nav("models", "Models", "/models"),
    Nav("datasets", "Datasets", "/datasets"),
    Nav("new_run", "New run", "/runs/new"),
    Nav("runs", "Runs", "/runs", "Results"),
    Nav("sweeps", "Sweeps", "/sweeps", "Results"),
    Nav("evals", "Evaluations", "/evals", "Results"),
    Nav("compare", "Compare", "/compare", "Results"),
    Nav("exports", "Exports", "/exports", "Results"),
    Nav("registry", "Registry", "/registry", "Results"),
    Nav("serve", "Serve", "/serve", "Results"),
)


def settings_of(request: Request) -> StudioSettings:
    """The settings of the studio that a request came to."""
    settings = request.app.state.settings
    assert isinstance(settings, StudioSettings)
    return settings


@cache
def asset(name: str) -> str:
    """The URL of a static file; it changes with its content, so browsers may keep it for good."""
    path = STATIC / name
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:10]
    except FileNotFoundError:
        return f"/static/{name}"
    return f"/static/{name}?v={digest}"


def ago(seconds: float | None) -> str:
    """A moment (seconds since the epoch) as a date and time of this machine's zone."""
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def clock(seconds: float) -> str:
    """A moment of today as its time, another as its date: short enough for a tile."""
    then = datetime.fromtimestamp(seconds, UTC).astimezone()
    return then.strftime("%H:%M" if then.date() == datetime.now(UTC).astimezone().date() else "%Y-%m-%d")


def named(model: str) -> str:
    """A model's name without its owner or folder."""
    return model.rstrip("/").rpartition("/")[2] or model


def count(number: float | None) -> str:
    """A whole number with its thousands apart."""
    return "" if number is None else f"{number:,.0f}"


def figure(number: float | None, digits: int = 4) -> str:
    """A measured number at the digits that matter."""
    if number is None:
        return ""
    if number != 0 and abs(number) < 1e-3:
        return f"{number:.2e}"
    return f"{number:.{digits}f}" if abs(number) < 100 else f"{number:,.1f}"


@cache
def templates() -> Environment:
    """Jinja's environment: everything escaped, an unknown name is an error."""
    env = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.globals.update(asset=asset, nav=NAV)
    env.filters.update(
        readable=readable,
        memory=memory,
        duration=duration,
        when=ago,
        clock=clock,
        named=named,
        count=count,
        figure=figure,
        json=as_json,
    )
    return env


def as_json(value: Any) -> str:
    """A value for a ``data-`` attribute; escaping is the template's."""
    return json.dumps(value, separators=(",", ":"), default=str)


def render(
    request: Request,
    template: str,
    context: dict[str, Any] | None = None,
    *,
    page: str = "",
    status: int = 200,
) -> Response:
    """A page from its template. page: the entry of the sidebar that is shown as the current one."""
    from luthier.studio.system import gauge

    settings = settings_of(request)
    values = {
        "request": request,
        "page": page,
        "path": request.url.path,
        "gauge": gauge(settings.runs),
        "version": request.app.version,
        **(context or {}),
    }
    return HTMLResponse(templates().get_template(template).render(values), status)
