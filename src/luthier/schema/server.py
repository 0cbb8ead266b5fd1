"""A server of models as a process of its own: what was asked of it, and what it says of itself."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from luthier.schema.base import Record
from luthier.schema.deployment import ContextPlan
from luthier.schema.run import Failure, WorkerIdentity

ServerState = Literal["loading", "ready", "stopping", "stopped", "failed", "lost"]
ServerPurpose = Literal["serve", "compare"]


class ServerWish(Record):
    """What a server should hold and where it should listen."""

    models: tuple[str, ...] = ()
    """``[NAME=]RUN|FILE|FOLDER``, as ``luthier serve`` takes them."""
    adapters: tuple[str, ...] = ()
    """``NAME=RUN``: adapters on one base, each a model of its own name."""
    gguf: str | None = None
    """Which type of a run's GGUF files answers; the smallest where None."""
    context: int | None = Field(None, ge=1)
    """Tokens of each slot; chosen from memory, model and training where None."""
    slots: int = Field(4, ge=1, le=256)
    """Requests that each model answers at once."""
    device: str | None = None
    """``cpu``, ``gpu:1`` or auto; llama.cpp's own choice where None."""
    host: str = "127.0.0.1"
    port: int = Field(0, ge=0, le=65_535)
    """0 takes a free one."""
    purpose: ServerPurpose = "serve"
    """compare: started for a comparison, and ends by itself when nobody asks any more."""
    idle: float | None = None
    """Seconds without a request after which it ends; None: never."""


class ServedModel(Record):
    """One name that a server answers to."""

    name: str
    kind: str
    """chat, embed, rerank, classify."""
    weights: str
    """SHA-256 of the weights that answer."""
    facts: dict[str, Any] = {}
    """run, base, file, step, adapter: as far as they are known."""
    plan: ContextPlan | None = None


class ServerStatus(Record):
    """Replaced atomically by the server's own process, or by whoever finds that process gone."""

    state: ServerState
    worker: WorkerIdentity | None = None
    note: str = ""
    """What it does while it loads, where that takes long."""
    url: str = ""
    """Where it listens, without /v1."""
    models: tuple[ServedModel, ...] = ()
    failure: Failure | None = None
    created: float = 0.0
    ready: float | None = None
    """When requests were first taken."""
    ended: float | None = None


class RequestNote(Record):
    """One request that was answered, its words left out."""

    at: float
    model: str
    path: str
    status: int
    seconds: float
