"""/api/v1/servers: models that are served, started and stopped."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from luthier.runs.servers import forget_server, stop_server
from luthier.schema.server import ServerWish
from luthier.studio.problems import Conflict
from luthier.studio.services.serving import ServerView, server_named, servers, start, view_of
from luthier.studio.web import settings_of

router = APIRouter(tags=["servers"])
REFUSED: dict[int | str, dict[str, Any]] = {404: {}, 409: {}}


class AskedServer(BaseModel):
    """A server of one or more runs."""

    model_config = ConfigDict(extra="forbid")
    models: list[Annotated[str, Field(max_length=300)]] = Field(default=[], max_length=16)
    """``[NAME=]RUN`` or ``[NAME=]MODEL:VERSION``."""
    adapters: list[Annotated[str, Field(max_length=300)]] = Field(default=[], max_length=16)
    """``[NAME=]RUN``: adapters on one base."""
    gguf: str | None = Field(None, max_length=40)
    context: int | None = Field(None, ge=16, le=10_000_000)
    slots: int = Field(4, ge=1, le=256)
    port: int = Field(0, ge=0, le=65_535)


def as_values(one: ServerView) -> dict[str, Any]:
    """A server as plain values, its key left out."""
    status = one.status.model_dump(mode="json", exclude={"worker"})
    return {
        "id": one.server.id,
        "memory": one.memory,
        **status,
        "wish": one.server.wish.model_dump(mode="json"),
    }


@router.get("/servers")
def listed() -> dict[str, Any]:
    """All servers, newest first."""
    return {"servers": [as_values(one) for one in servers()]}


@router.post("/servers", status_code=202, responses=REFUSED)
def begin(request: Request, asked: AskedServer) -> dict[str, Any]:
    """Start a server; refused where its models would not fit into the memory that is free."""
    return as_values(view_of(start(ServerWish.model_validate(asked.model_dump()), settings_of(request))))


@router.get("/servers/{server_id}", responses=REFUSED)
def one(server_id: str) -> dict[str, Any]:
    """One server, with its key and its last requests."""
    found = server_named(server_id)
    return {
        **as_values(view_of(found)),
        "key": found.key,
        "requests": [note.model_dump(mode="json") for note in found.requests()],
    }


@router.post("/servers/{server_id}/stop", responses=REFUSED)
def stop(server_id: str) -> dict[str, Any]:
    """Stop a server once its answers have ended."""
    found = server_named(server_id)
    stop_server(found)
    return as_values(view_of(found))


@router.delete("/servers/{server_id}", responses=REFUSED)
def forget(server_id: str) -> dict[str, Any]:
    """Delete what is kept of a server that has ended."""
    found = server_named(server_id)
    if view_of(found).memory is not None:
        raise Conflict(f"{found.id} is still running", hint="stop it first")
    forget_server(found)
    return {"id": found.id}
