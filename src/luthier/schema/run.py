"""State of a run, as kept in its directory."""

from __future__ import annotations

from typing import Literal

from luthier.schema.base import Record
from luthier.schema.recipe import ExportChoice

State = Literal["queued", "preparing", "running", "stopping", "done", "stopped", "failed", "lost"]
Stage = Literal["prepare", "baseline", "train", "prove", "ship", "report"]


class WorkerIdentity(Record):
    """Names a process for good: a reused pid is told apart by its start time and boot."""

    pid: int
    started: float
    """Start time of the process, in seconds since the epoch."""
    boot: str
    """Identity of the machine's boot."""


class Failure(Record):
    """Why a run failed, in words."""

    kind: str
    message: str
    hint: str | None
    exit_code: int


class Status(Record):
    """Replaced atomically; only the worker writes running to failed."""

    state: State
    stage: Stage | None = None
    step: int = 0
    total_steps: int | None = None
    worker: WorkerIdentity | None = None
    heartbeat: float | None = None
    """Seconds since the epoch of the worker's last sign of life."""
    failure: Failure | None = None
    seconds: dict[Stage, float] = {}
    """Stage -> wall time so far."""
    peak_memory: dict[Stage, int] = {}
    """Stage -> peak resident bytes of its largest process."""


class Job(Record):
    """One thing to do with a finished training, besides the stages that its recipe names."""

    kind: Literal["evaluate", "export"]
    data: tuple[str, ...] = ()
    """evaluate: files of rows to judge base and tuned model on."""
    name: str = "extra"
    """evaluate: what the split is called."""
    export: ExportChoice | None = None
    """export: what to write."""
