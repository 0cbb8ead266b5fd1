"""What waits, what is being prepared, and who holds memory."""

from __future__ import annotations

from typing import Any, Literal

from luthier.schema.base import Record
from luthier.schema.run import Failure, Job, WorkerIdentity

JobKind = Literal["train", "resume", "evaluate", "export"]
JobState = Literal["preparing", "queued", "running", "done", "stopped", "failed", "lost", "cancelled"]
OPEN: frozenset[JobState] = frozenset({"preparing", "queued", "running"})
"""States of a job that something is still to come of."""


class JobRequest(Record):
    """What is asked for, before anything is prepared."""

    kind: JobKind
    recipe: dict[str, Any] | None = None
    """train: the recipe's values as in YAML; what is left out is derived."""
    overrides: tuple[str, ...] = ()
    """train: dotted settings that win over the recipe's."""
    source: Literal["recipe", "clone", "extend", "branch"] = "recipe"
    """train: where the recipe comes from; all but the first take that of ``run``."""
    run: str | None = None
    """The run that is cloned, extended, branched from (RUN@STEP), resumed, evaluated or exported."""
    init_from: str | None = None
    """train: an adapter's folder, or a run, to start from."""
    job: Job | None = None
    """evaluate, export: what to do."""
    name: str | None = None
    """What the queue shows; the recipe's own name when not given."""
    first: bool = False
    """Go to the head of the queue."""


class QueuedJob(Record):
    """One entry of the queue, until it is over and for a while after."""

    id: str
    kind: JobKind
    state: JobState
    name: str
    run: str | None = None
    """The run's id; None until it is prepared."""
    position: float
    """Order among those that wait; smaller goes first."""
    created: float
    """Seconds since the epoch, as all times here."""
    started: float | None = None
    ended: float | None = None
    need: int = 0
    """Bytes of the device's memory that it is expected to take."""
    devices: int = 1
    """Accelerators that it trains on together."""
    device: int | None = None
    """Which accelerator it was given; None without one, or where it takes all."""
    note: str = ""
    """What it is at, or what it waits for."""
    worker: WorkerIdentity | None = None
    """The process that prepares it or carries it out."""
    failure: Failure | None = None
    request: JobRequest


class Lease(Record):
    """Memory that a process other than a run's worker holds: a served model, a chat."""

    name: str
    kind: Literal["serve", "chat"]
    bytes: int
    device: int | None = None
    worker: WorkerIdentity
    evictable: bool = True
    """May be asked to leave for a training run, with notice."""
    leave_by: float | None = None
    """When it will be ended, if it was asked to leave."""
