"""Jobs on clusters: what is asked for, and what became of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from luthier.schema.base import Range, Record

Cluster = Literal["slurm", "skypilot", "kubernetes"]
JobState = Literal["written", "pending", "running", "preempted", "done", "failed", "cancelled", "unknown"]
ENDED: frozenset[JobState] = frozenset({"done", "failed", "cancelled"})


class LaunchChoice(Record):
    """A job, as it is asked for."""

    on: Cluster
    name: str
    """Of the job and of its run: small letters, digits and dashes."""
    nodes: int = Field(1, ge=1)
    gpus: int = Field(1, ge=0)
    """GPUs of each machine; 0: its CPU."""
    gpu_type: str | None = None
    """As the catalogue knows it, for prediction and price; asked of SLURM and SkyPilot too."""
    time: str | None = None
    """Limit, as SLURM writes it: 2:00:00 or 1-12:00:00."""
    setup: tuple[str, ...] = ()
    """Lines of shell before the training, on every machine."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    cpus: int | None = Field(None, ge=1)
    """Cores of each machine."""
    memory_gb: int | None = Field(None, ge=1)
    """Memory of each machine."""
    spot: bool = False
    infra: str | None = None
    """SkyPilot: where to look for machines, such as aws/us-east-1."""
    bucket: str | None = None
    """SkyPilot: s3://NAME or gs://NAME that keeps the run; the job is then recovered after a preemption."""
    image: str | None = None
    namespace: str | None = None
    volume: str | None = None
    """Kubernetes: the volume claim that all pods mount; the run is kept there."""
    selector: dict[str, str] = {}
    """Kubernetes: labels of the machines that will do."""
    secret: str | None = None
    """Kubernetes: a secret whose keys become environment variables (HF_TOKEN)."""
    retries: int = Field(10, ge=0)
    """How often a job that fails is started again, where the cluster does that."""


class Cost(Record):
    """What a job will cost; every figure with its source."""

    price: float | None = None
    """US dollars for one GPU and hour."""
    source: str = ""
    """Whose price, and when."""
    hourly: float | None = None
    """US dollars an hour for all GPUs."""
    hours: Range | None = None
    """Of training; baseline, proof and export come on top."""
    total: Range | None = None
    unknown: str = ""
    """Why time or price is not known."""


class LaunchedJob(Record):
    """A job that was written, and what became of it."""

    choice: LaunchChoice
    file: str
    """The job file."""
    runs: str
    """The folder of runs, there."""
    log: str | None = None
    """Where the job's log is written, if that is a file that can be read here."""
    id: str | None = None
    """The cluster's own name of the job; None until it is submitted."""
    created: float
    submitted: float | None = None
    ended: float | None = None
    state: JobState = "written"
    words: str = ""
    """The state in the cluster's own words."""
    cost: Cost = Cost()
    brought: str | None = None
    """Where the run's folder lies here."""
