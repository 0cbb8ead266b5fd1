"""The queue: order, who may start, what a dead process leaves, and what survives."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import UsageError
from luthier.runs import queue as module
from luthier.runs.process import identity
from luthier.runs.queue import AlreadyBusy, NotQueued, Queue
from luthier.schema.hardware import Accelerator, Hardware, Processor
from luthier.schema.queue import JobRequest, Lease
from luthier.schema.run import Status, WorkerIdentity
from studio_case import made_run

GIB = 2**30
GONE = WorkerIdentity(pid=2**22 - 1, started=1.0, boot="of another day")


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    """A queue whose scheduler is the test, and whose runs all take 4 GiB."""
    monkeypatch.setattr(Queue, "wake", lambda self: None)
    monkeypatch.setattr(module, "need_of", lambda run: 4 * GIB)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return Queue(tmp_path / "runs")


def machine(*cards: int) -> Hardware:
    """A machine with cards of so many GiB."""
    return Hardware(
        processor=Processor(name="x", cores=2, instruction_sets=(), bf16=True),
        memory_total=16 * GIB,
        memory_free=16 * GIB,
        disk_free=None,
        accelerators=tuple(
            Accelerator(
                index=place,
                name="card",
                kind="cuda",
                memory_total=size * GIB,
                memory_free=size * GIB,
                bf16=True,
            )
            for place, size in enumerate(cards)
        ),
    )


def waiting(tmp_path: Path, name: str) -> Any:
    return made_run(tmp_path, name, steps=0, status=Status(state="queued"))


class Starter:
    """Stands in for start_worker: writes this process, which lives, as the worker."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def __call__(self, run: Any, job: Any = None) -> subprocess.Popen[bytes]:
        self.started.append(run.id)
        run.set_status(Status(state="running", worker=identity()))
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3)"])


def test_one_at_a_time_in_order(tmp_path: Path, queue: Queue) -> None:
    runs = [waiting(tmp_path, name) for name in ("a", "b", "c")]
    for run in runs:
        queue.add(run)
    start = Starter()
    assert queue.tick(machine(), start)
    assert start.started == ["a"]
    assert queue.get(queue.of_run("b").id).note == "waits for a"  # type: ignore[union-attr]
    runs[0].set_status(Status(state="done"))
    queue.tick(machine(), start)
    assert start.started == ["a", "b"]
    assert [job.state for job in queue.jobs()] == ["running", "queued", "done"]


def test_the_order_can_be_changed(tmp_path: Path, queue: Queue) -> None:
    ids = {name: queue.add(waiting(tmp_path, name)).id for name in "abcd"}
    queue.move(ids["d"], 0)
    queue.move(ids["a"], 2)
    assert [job.run for job in queue.jobs()] == ["d", "b", "a", "c"]
    queue.move(ids["d"], 99)
    assert [job.run for job in queue.jobs()] == ["b", "a", "c", "d"]
    start = Starter()
    queue.tick(machine(), start)
    with pytest.raises(AlreadyBusy, match="only what waits"):
        queue.move(ids["b"], 1)


def test_what_failed_holds_up_nobody(tmp_path: Path, queue: Queue) -> None:
    for name in "ab":
        queue.add(waiting(tmp_path, name))

    def start(run: Any, job: Any = None) -> Any:
        raise OSError("no more processes") if run.id == "a" else UsageError("worse")

    queue.tick(machine(), start)
    assert [(job.run, job.state) for job in queue.jobs()] == [("b", "failed"), ("a", "failed")]
    assert "no more processes" in next(job for job in queue.jobs() if job.run == "a").failure.message  # type: ignore[union-attr]


def test_two_cards_train_two_runs(tmp_path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in "abc":
        queue.add(waiting(tmp_path, name))
    start = Starter()
    queue.tick(machine(24, 24), start)
    assert start.started == ["a", "b"]
    assert {job.device for job in queue.jobs() if job.state == "running"} == {0, 1}


def test_a_served_model_is_asked_to_leave_with_notice(
    tmp_path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    queue.lease(Lease(name="tone", kind="serve", bytes=6 * GIB, device=0, worker=identity(server.pid)))
    job = queue.add(waiting(tmp_path, "a"))
    start = Starter()
    queue.tick(machine(8), start)
    assert start.started == []
    assert "asked to leave: tone" in queue.get(job.id).note
    (lease,) = queue.leases()
    assert lease.leave_by is not None
    assert lease.leave_by > time.time() + 20
    assert server.poll() is None
    queue.lease(lease.model_copy(update={"leave_by": time.time() - 1}))
    queue.tick(machine(8), start)
    server.wait(10)
    assert queue.leases() == []
    queue.tick(machine(8), start)
    assert start.started == ["a"]


def test_what_fits_beside_a_served_model_does_not_wait(tmp_path: Path, queue: Queue) -> None:
    queue.lease(Lease(name="tone", kind="serve", bytes=6 * GIB, device=0, worker=identity()))
    queue.add(waiting(tmp_path, "a"))
    start = Starter()
    queue.tick(machine(24), start)
    assert start.started == ["a"]
    assert queue.leases()[0].leave_by is None


def test_a_run_started_elsewhere_is_waited_for(tmp_path: Path, queue: Queue) -> None:
    made_run(tmp_path, "by-hand", status=Status(state="running", worker=identity()))
    queue.add(waiting(tmp_path, "a"))
    start = Starter()
    queue.tick(machine(), start)
    assert start.started == []


def test_a_worker_that_died_before_its_first_word_is_lost(tmp_path: Path, queue: Queue) -> None:
    run = waiting(tmp_path, "a")
    job = queue.add(run)

    def start(run: Any, job: Any = None) -> subprocess.Popen[bytes]:
        run.set_status(Status(state="queued"))
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3)"])

    queue.tick(machine(), start)
    time.sleep(0.6)
    queue.settle()
    assert queue.get(job.id).state == "lost"
    assert run.status.state == "lost"


def test_a_deleted_index_is_rebuilt(tmp_path: Path, queue: Queue) -> None:
    for name in "ab":
        queue.add(waiting(tmp_path, name))
    for path in queue.folder.glob("queue.sqlite*"):
        path.unlink()
    assert [job.run for job in Queue(queue.root).jobs()] == ["a", "b"]


def test_a_run_waits_once(tmp_path: Path, queue: Queue) -> None:
    run = waiting(tmp_path, "a")
    job = queue.add(run)
    with pytest.raises(AlreadyBusy):
        queue.add(run)
    queue.cancel(job.id)
    assert run.status.state == "stopped"
    assert queue.submit(JobRequest(kind="resume", run="a")).state == "queued"
    with pytest.raises(NotQueued):
        queue.get("j0")


def test_a_preparation_that_was_killed_is_failed(tmp_path: Path, queue: Queue) -> None:
    request = JobRequest(kind="train", recipe={"name": "x"})
    job = queue._insert(request, name="x", state="preparing", run=None, key=None)
    queue.change(job.id, worker=GONE, created=time.time() - 60)
    queue.settle()
    assert queue.get(job.id).state == "failed"


def test_a_bad_recipe_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Queue, "wake", lambda self: None)
    queue = Queue(tmp_path / "runs")
    asked = JobRequest(kind="train", recipe={"model": {"id": "a/b"}, "data": {"train": "x"}, "methd": {}})
    job = queue.submit(asked, key="once")
    assert queue.submit(asked, key="once").id == job.id
    for _ in range(300):
        queue.settle()
        if queue.get(job.id).state == "failed":
            break
        time.sleep(0.1)
    failure = queue.get(job.id).failure
    assert failure is not None
    assert "methd" in failure.message
