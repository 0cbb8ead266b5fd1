"""A job on top of a finished run may fail; the run stays what it was."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import DoesNotFit, Interrupted, LuthierError
from luthier.runs import process, workflow
from luthier.runs.process import RunFailed, current_state, identity, raise_for_end
from luthier.runs.queue import Queue
from luthier.runs.worker import work
from luthier.schema.queue import JobRequest
from luthier.schema.recipe import ExportChoice
from luthier.schema.run import Job, Status, WorkerIdentity
from studio_case import made_run, studio

EXPORT = Job(kind="export", export=ExportChoice(gguf=("Q4_K_M",)))
GONE = WorkerIdentity(pid=2**22 - 1, started=1.0, boot="of another day")


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """A worker takes the process's signals: they are given back."""
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


def begun(run: Any, monkeypatch: pytest.MonkeyPatch, job: Job | None) -> None:
    """``start_worker`` without the process."""
    monkeypatch.setattr(process.subprocess, "Popen", lambda *_, **__: None)
    process.start_worker(run, job)


@pytest.mark.parametrize("error", [DoesNotFit("the disk is full", hint="free some"), ValueError("a bug")])
def test_a_failed_export_leaves_a_finished_run_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    run = made_run(tmp_path, "orders")

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(workflow, "execute", fail)
    begun(run, monkeypatch, EXPORT)
    assert (run.status.state, run.status.was) == ("queued", "done")
    assert work(run.path, EXPORT) != 0
    assert current_state(run) == "done"
    assert run.status.was is None
    with pytest.raises(RunFailed, match=r"the disk is full|a bug"):
        raise_for_end(run)
    with studio(tmp_path) as client:
        assert "The last job on this run ended early" in client.get("/runs/orders").text
    # The next job begins with a clean slate.
    monkeypatch.setattr(workflow, "execute", lambda *_: None)
    run.set_status(run.status.model_copy(update={"worker": None}))  # this process, which lives on
    begun(run, monkeypatch, EXPORT)
    assert work(run.path, EXPORT) == 0
    raise_for_end(run)


def test_one_that_was_stopped_or_killed_leaves_it_done_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_run(tmp_path, "orders")

    def stop(*_: Any) -> None:
        raise Interrupted("stopped on request")

    monkeypatch.setattr(workflow, "execute", stop)
    begun(run, monkeypatch, EXPORT)
    assert work(run.path, EXPORT) == 130
    assert (current_state(run), run.status.failure.kind) == ("done", "Interrupted")
    run.set_status(Status(state="running", worker=GONE, was="done"))
    assert current_state(run) == "done"
    with pytest.raises(RunFailed, match="gone without a word"):
        raise_for_end(run)


def test_a_training_that_fails_is_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made_run(tmp_path, "orders", status=Status(state="stopped", step=3))

    def fail(*_: Any) -> None:
        raise LuthierError("no")

    monkeypatch.setattr(workflow, "execute", fail)
    begun(run, monkeypatch, None)
    assert work(run.path) == 1
    assert current_state(run) == "failed"


def test_the_queue_says_that_the_job_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Queue, "wake", lambda self: None)
    run = made_run(tmp_path, "orders")
    run.save_stage("train", "", {})
    queue = Queue(tmp_path / "runs")
    job = queue.submit(JobRequest(kind="export", run="orders", job=EXPORT))
    queue.change(job.id, state="running", worker=identity())

    def fail(*_: Any) -> None:
        raise DoesNotFit("the disk is full", hint="free some")

    monkeypatch.setattr(workflow, "execute", fail)
    begun(run, monkeypatch, EXPORT)
    work(run.path, EXPORT)
    queue.settle()
    found = queue.get(job.id)
    assert (found.state, current_state(run)) == ("failed", "done")
    assert found.failure is not None
    assert "disk is full" in found.failure.message
