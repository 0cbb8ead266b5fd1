"""The worker as a process: started detached, named for good, watched, stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from luthier.errors import Interrupted, TrainingError, UsageError
from luthier.runs.directory import RunDirectory
from luthier.schema.nodes import Place
from luthier.schema.run import Failure, Job, State, WorkerIdentity

ACTIVE: frozenset[State] = frozenset({"queued", "preparing", "running", "stopping"})
PLACE = "LUTHIER_PLACE"
"""Variable that tells a worker which of several machines it is on."""
SILENT_AFTER = 60.0
"""Seconds without a heartbeat after which a worker of another boot or host counts as lost."""


def boot_id() -> str:
    """Identity of this boot, so that a pid of an earlier one is never taken for ours."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return str(int(psutil.boot_time()))


def identity(pid: int | None = None) -> WorkerIdentity:
    """Name a process (this one by default) so that a reused pid is told apart."""
    process = psutil.Process(pid)
    return WorkerIdentity(pid=process.pid, started=process.create_time(), boot=boot_id())


def alive(worker: WorkerIdentity | None) -> bool:
    """Whether that very process still runs."""
    if worker is None or worker.boot != boot_id():
        return False
    try:
        process = psutil.Process(worker.pid)
        return abs(process.create_time() - worker.started) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def torch_environment() -> dict[str, str]:
    """The environment of a process that computes with torch. What the user has set stays.

    OpenMP's threads wait by spinning unless told otherwise. On a machine that does anything else at
    the same time a spinning thread keeps its partner off the core, and small products take ten to
    fifty times as long; waiting asleep costs nothing that could be measured on an idle machine.

    oneDNN keeps a kernel for each shape that it meets, by default a thousand: rows of ever new lengths
    then cost memory step by step. One is enough (measured: 240 MB less after 40 steps, no slower).

    CUDA's allocator is told to grow its segments, as the memory prediction assumes.
    """
    return {
        "OMP_WAIT_POLICY": "PASSIVE",
        "LRU_CACHE_CAPACITY": "1",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        **os.environ,
    }


def start_worker(
    run: RunDirectory, job: Job | None = None, *, threads: int | None = None, place: Place | None = None
) -> subprocess.Popen[bytes]:
    """Start the worker of a run in a session of its own: it outlives whoever started it.

    threads: of one operation; all cores when not given (what the user has set stays). place: of this
    machine, the first, among several that train the run together.
    Errors: UsageError where a worker is at it already.
    """
    if run.status.state not in ACTIVE:
        _wait_for_end(run.status.worker)
    if alive(run.status.worker):
        raise UsageError(
            f"{run.id} is being worked on already",
            hint=f"see `luthier runs show {run.id}`, or `luthier runs stop`",
        )
    run.clear("stop")
    run.clear("save")
    # The worker writes its own name here; until then the run counts as waiting, not as lost.
    status = run.status
    on_top = job is not None and job.kind in ("evaluate", "export")
    was = (status.was or (None if status.state in ACTIVE else status.state)) if on_top else None
    run.set_status(status.model_copy(update={"state": "queued", "worker": None, "failure": None, "was": was}))
    words = [sys.executable, "-m", "luthier.runs.worker", str(run.path)]
    if job is not None:
        words.append(job.model_dump_json())
    with (run.path / "log.txt").open("ab") as log:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
            | torch_environment()
            | {PLACE: "" if place is None else place.model_dump_json()},
        )


def current_state(run: RunDirectory) -> State:
    """The run's state, with a worker that died without a word shown as lost (and written so)."""
    status = run.status
    if status.state not in ACTIVE or (status.state == "queued" and status.worker is None):
        return status.state
    if alive(status.worker):
        return status.state
    lost = run.status  # the worker may have finished between the two looks
    if lost.state in ACTIVE:
        found: State = lost.was or "lost"
        failure = lost.failure if lost.was is None else _gone(run)
        with contextlib.suppress(OSError):  # where the disk is full it is found lost anew each time
            run.set_status(lost.model_copy(update={"state": found, "was": None, "failure": failure}))
        return found
    return lost.state


def _gone(run: RunDirectory) -> Failure:
    """What is said of a job on top of a finished run whose worker was killed: the run itself stands."""
    return Failure(
        kind="TrainingError",
        message="the worker of this job is gone without a word (killed, or out of memory)",
        hint=f"ask for it again; its last words: luthier runs logs {run.id}",
        exit_code=1,
    )


def kill_group(worker: WorkerIdentity) -> None:
    """End a worker and its children at once; the last checkpoint stays."""
    if alive(worker):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)


def stop_worker(run: RunDirectory, *, patience: float = 60.0) -> None:
    """Ask for a stop; after ``patience`` seconds send SIGTERM, after 30 more end it for sure."""
    run.ask("stop")
    worker = run.status.worker
    for seconds, sign in ((patience, signal.SIGTERM), (30.0, signal.SIGKILL)):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if not alive(worker):
                return
            time.sleep(0.1)
        if worker is not None and alive(worker):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, sign)


class RunFailed(TrainingError):
    """A run's own failure, as told by its worker; leaves with the exit code of its cause."""

    def __init__(self, failure: Failure, run: RunDirectory) -> None:
        super().__init__(failure.message, hint=failure.hint or f"see the log: luthier runs logs {run.id}")
        self.exit_code = failure.exit_code


def _wait_for_end(worker: WorkerIdentity | None, seconds: float = 30.0) -> None:
    """A worker that has written its last status still takes a moment to let its memory go."""
    until = time.monotonic() + seconds
    while alive(worker) and time.monotonic() < until:
        time.sleep(0.05)


def raise_for_end(run: RunDirectory) -> None:
    """Pass on how a run ended. Errors: RunFailed; TrainingError where it was lost; Interrupted."""
    state, failure = current_state(run), run.status.failure
    go_on = f"luthier train --resume {run.id}"
    if state == "failed" or failure is not None:
        unknown = Failure(kind="unknown", message="failed", hint=None, exit_code=1)
        raise RunFailed(failure or unknown, run)
    if state == "lost":
        raise TrainingError(
            f"the worker of {run.id} is gone without a word (killed, or out of memory)",
            hint=f"go on from its last checkpoint: {go_on}; its last words: luthier runs logs {run.id}",
        )
    if state == "stopped":
        raise Interrupted(f"{run.id} was stopped, its work is saved", hint=f"go on with: {go_on}")
