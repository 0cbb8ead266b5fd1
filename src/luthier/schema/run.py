"""State of a run, as kept in its directory."""

from __future__ import annotations

from typing import Literal

from luthier.schema.base import Range, Record
from luthier.schema.estimate import TrainingShape
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


class Planned(Record):
    """How a run was cut when it was prepared."""

    shape: TrainingShape
    tokens: int
    """Training tokens, every epoch counted."""
    steps: int
    flops: float = 0.0
    """Operations of one token, forward and backward; recomputation not counted."""


class Changed(Record):
    """A setting that differs from the parent's, as written in YAML; None where it was not set."""

    before: str | None
    after: str | None


class Origin(Record):
    """Where a run comes from."""

    kind: Literal["clone", "extend", "branch", "warm-start", "sweep"]
    parent: str
    """The parent run's id, the adapter's folder, or the sweep's name."""
    path: str
    """Where that was."""
    step: int | None = None
    """The parent's step that training goes on from; None where it begins anew."""
    changed: dict[str, Changed] = {}
    """Dotted setting -> what was changed."""
    rule: str = ""
    """What the learning rate does at the joint."""


class Correction(Record):
    """What the first steps say of the whole training, beside what was predicted. Seconds, bytes."""

    step: int
    """Steps that were done when this was said."""
    seconds: Range
    predicted_seconds: Range | None = None
    memory: Range
    """Peak: resident set on a CPU, allocated tensors on a GPU."""
    predicted_memory: Range | None = None


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
    was: State | None = None
    """How the finished run stood before a job that is done on top of it (an evaluation, an export): the job's
    failure is kept in ``failure``, the run's state is again what it was."""
    correction: Correction | None = None
    """What the first steps say of the time and memory of the training."""
    seconds: dict[Stage, float] = {}
    """Stage -> wall time so far."""
    peak_memory: dict[Stage, int] = {}
    """Stage -> peak resident bytes of its largest process."""


class Job(Record):
    """What to do with a run in place of all stages that its recipe names."""

    kind: Literal["train", "prove", "evaluate", "export"]
    """train: training alone, no held-out row is answered; prove: baseline, training and proof, nothing is
    shipped; the others come on top of a finished training."""
    data: tuple[str, ...] = ()
    """evaluate: files of rows to judge base and tuned model on."""
    name: str = "extra"
    """evaluate: what the split is called."""
    export: ExportChoice | None = None
    """export: what to write."""
