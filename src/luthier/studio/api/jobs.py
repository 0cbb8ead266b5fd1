"""/api/v1/jobs: what waits, what runs, in which order."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Request
from pydantic import BaseModel, ConfigDict, Field

from luthier.runs.directory import RunDirectory
from luthier.runs.process import ACTIVE, current_state, kill_group
from luthier.runs.queue import Queue
from luthier.studio.problems import Conflict
from luthier.studio.services.jobs import AskedJob, submit, view
from luthier.studio.services.stopping import stop
from luthier.studio.web import settings_of

router = APIRouter(tags=["jobs"])
REFUSED: dict[int | str, dict[str, Any]] = {404: {}, 409: {}}


class ChangedJob(BaseModel):
    """What can be changed of a job that waits."""

    model_config = ConfigDict(extra="forbid")
    position: int | None = Field(None, ge=0, le=100_000)
    """Place among those that wait; 0 is next."""
    name: str | None = Field(None, min_length=1, max_length=200)


@router.post("/jobs", status_code=202)
def add(
    request: Request,
    asked: AskedJob,
    idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
) -> dict[str, Any]:
    """Enter a job; the same Idempotency-Key gives the same job again."""
    return view(submit(settings_of(request), asked, key=idempotency_key))


@router.get("/jobs")
def jobs(request: Request) -> dict[str, Any]:
    """What runs and waits in order, then what is over, newest first; and who else holds memory."""
    queue = Queue(settings_of(request).runs)
    queue.settle()
    leases = [one.model_dump(mode="json", exclude={"worker"}) for one in queue.leases()]
    return {"jobs": [view(one) for one in queue.jobs()], "leases": leases}


@router.get("/jobs/{job_id}", responses=REFUSED)
def job(request: Request, job_id: str) -> dict[str, Any]:
    """One job, and the end of what its preparation said."""
    queue = Queue(settings_of(request).runs)
    queue.settle()
    found = queue.get(job_id)
    path = queue.log_path(found.id)
    log = path.read_text(encoding="utf-8", errors="replace")[-4000:] if path.exists() else ""
    return {**view(found), "log": log}


@router.patch("/jobs/{job_id}", responses=REFUSED)
def change(request: Request, job_id: str, asked: ChangedJob) -> dict[str, Any]:
    """Move a job that waits, or name it."""
    queue = Queue(settings_of(request).runs)
    found = queue.get(job_id)
    if asked.name is not None:
        found = queue.change(job_id, name=asked.name)
    if asked.position is not None:
        found = queue.move(job_id, asked.position)
    return view(found)


@router.post("/jobs/{job_id}/{wish}", responses=REFUSED)
def act(request: Request, job_id: str, wish: Literal["stop", "kill", "save", "cancel"]) -> dict[str, Any]:
    """Cancel what waits; stop (and save), save or kill what runs."""
    queue = Queue(settings_of(request).runs)
    found = queue.get(job_id)
    if wish == "cancel" or found.state in ("preparing", "queued"):
        return view(queue.cancel(job_id))
    act_on_run(RunDirectory(queue.root / str(found.run)), wish)
    return view(queue.get(job_id))


def act_on_run(run: RunDirectory, wish: Literal["stop", "kill", "save"]) -> None:
    """Stop (and save), save or kill a run's worker. Errors: Conflict where none is at it."""
    if current_state(run) not in ACTIVE:
        raise Conflict(f"{run.id} is {current_state(run)}", hint="only what runs can be stopped or saved")
    if wish == "save":
        run.ask("save")
    elif wish == "stop":
        stop(run)
    elif (worker := run.status.worker) is not None:
        kill_group(worker)
