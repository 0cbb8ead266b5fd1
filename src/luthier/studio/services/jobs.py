"""What is asked of the queue from the studio, as the API and the pages ask it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from luthier.errors import UsageError
from luthier.runs.queue import Queue
from luthier.schema.load import recipe_values
from luthier.schema.queue import OPEN, JobRequest, QueuedJob
from luthier.schema.recipe import ExportChoice
from luthier.schema.run import Job
from luthier.studio.settings import StudioSettings


class AskedJob(BaseModel):
    """A job as it is asked for over the API."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["train", "resume", "evaluate", "export"]
    recipe: dict[str, Any] | None = None
    """train: the recipe's values; what is left out is derived."""
    recipe_yaml: str | None = Field(None, max_length=200_000)
    """train: the recipe as YAML, in place of ``recipe``."""
    overrides: list[str] = Field(default=[], max_length=200)
    """train: settings that win, as ``training.epochs=2``."""
    source: Literal["recipe", "clone", "extend", "branch"] = "recipe"
    """train: whether the recipe is given or taken from ``run`` (branch: RUN@STEP)."""
    run: str | None = None
    init_from: str | None = None
    """train: an adapter's folder, or a run, whose weights it starts from."""
    data: list[str] = Field(default=[], max_length=100)
    """evaluate: files of rows."""
    name: str | None = Field(None, max_length=200)
    export: ExportChoice | None = None
    first: bool = False
    """Go to the head of the queue."""


def submit(settings: StudioSettings, asked: AskedJob, *, key: str | None = None) -> QueuedJob:
    """Enter a job. Errors: UsageError, RecipeError, AlreadyBusy."""
    return Queue(settings.runs).submit(_request(asked), key=key)


def _request(asked: AskedJob) -> JobRequest:
    recipe, job = asked.recipe, None
    if asked.recipe_yaml is not None:
        if recipe is not None:
            raise UsageError("give the recipe once: as values or as YAML")
        recipe = recipe_values(asked.recipe_yaml)
    if asked.kind == "evaluate":
        if not asked.data:
            raise UsageError("which rows? data names no file")
        job = Job(kind="evaluate", data=tuple(asked.data), name=asked.name or "extra")
    elif asked.kind == "export":
        if asked.export is None:
            raise UsageError("what is to be written? export is missing")
        job = Job(kind="export", export=asked.export)
    return JobRequest(
        kind=asked.kind,
        recipe=recipe,
        overrides=tuple(asked.overrides),
        source=asked.source,
        run=asked.run,
        init_from=asked.init_from,
        job=job,
        name=None if asked.kind == "evaluate" else asked.name,
        first=asked.first,
    )


def view(job: QueuedJob) -> dict[str, Any]:
    """A job as the API shows it: without the request's recipe."""
    return job.model_dump(mode="json", exclude={"request", "worker"})


def open_jobs(settings: StudioSettings) -> list[QueuedJob]:
    """What is prepared, runs or waits, in order."""
    queue = Queue(settings.runs)
    queue.settle()
    return queue.jobs(OPEN)
