"""The queue: what waits for the machine, in which order, and who holds its memory.

One SQLite file (WAL) under ``.queue`` of the runs' folder is an index; what waits is also written into the
folder of its run, so a queue that was deleted is rebuilt. Whoever holds the lock file starts workers: the
scheduler, a small process that the first waiting entry spawns and that ends with the queue. Commands, the
studio and Python only write entries, so all of them see one queue, with or without each other.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from luthier.errors import LuthierError, UsageError
from luthier.files import write_text
from luthier.runs.directory import RunDirectory, find_run, list_runs, runs_root
from luthier.runs.process import ACTIVE, alive, current_state, identity, start_worker
from luthier.runs.stages import load_estimate
from luthier.schema.hardware import Hardware
from luthier.schema.queue import OPEN, JobRequest, JobState, Lease, QueuedJob
from luthier.schema.run import Failure
from luthier.words import memory

KEEP = 200
"""Entries that are over and still listed."""
NOTICE = 30.0
"""Seconds between asking a served model to leave and ending it."""
USABLE = 0.97
"""Share of a device's memory that is given out."""
MARK = "queued.json"
"""File in the folder of a run that waits."""
_SCHEMA = """
create table if not exists jobs (id text primary key, state text, position real, run text, key text unique,
                                 body text not null);
create index if not exists jobs_state on jobs (state, position);
"""


class NotQueued(UsageError):
    """There is no such entry."""


class AlreadyBusy(UsageError):
    """The run has an open entry, or a worker, already."""


class Queue:
    """The queue of one folder of runs. Opens the file for each call, so it may be shared by threads."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or runs_root()
        self.folder = self.root / ".queue"

    # -- reading -----------------------------------------------------------------------------

    def jobs(self, states: frozenset[JobState] | None = None) -> list[QueuedJob]:
        """Entries in their order, those that are over last and newest first."""
        if not self._file.exists() and not self._marks():
            return []
        with self._open() as db:
            rows = db.execute("select body from jobs order by position").fetchall()
        found = [QueuedJob.model_validate_json(body) for (body,) in rows]
        found = [one for one in found if states is None or one.state in states]
        waiting = [one for one in found if one.state in OPEN]
        over = sorted((o for o in found if o.state not in OPEN), key=lambda o: o.ended or 0, reverse=True)
        return sorted(waiting, key=lambda one: (one.state == "queued", one.position)) + over

    def get(self, job_id: str) -> QueuedJob:
        """One entry. Errors: NotQueued."""
        with self._open() as db:
            row = db.execute("select body from jobs where id = ?", (job_id,)).fetchone()
        if row is None:
            raise NotQueued(f"there is no job {job_id!r}", hint="see `luthier runs`, or Runs in the studio")
        return QueuedJob.model_validate_json(row[0])

    def of_run(self, run_id: str) -> QueuedJob | None:
        """The open entry of a run."""
        return next((one for one in self.jobs(OPEN) if one.run == run_id), None)

    def log_path(self, job_id: str) -> Path:
        """Where the preparation of an entry writes what it says."""
        return self.folder / f"{job_id}.log"

    # -- adding ------------------------------------------------------------------------------

    def submit(self, request: JobRequest, *, key: str | None = None) -> QueuedJob:
        """Enter a request. A training is prepared by a process of its own and then waits.

        key: the same key gives the same entry, whatever is asked. Errors: UsageError, AlreadyBusy.
        """
        if key is not None:
            with self._open() as db:
                row = db.execute("select body from jobs where key = ?", (key,)).fetchone()
            if row is not None:
                return QueuedJob.model_validate_json(row[0])
        if request.kind != "train":
            return self._submit_existing(request, key)
        if (request.source == "recipe") == (request.recipe is None):
            raise UsageError("a training is asked for with a recipe, or with a run to take it from")
        name = request.name or str((request.recipe or {}).get("name") or request.run or "run")
        job = self._insert(request, name=name, state="preparing", run=None, key=key)
        log = self.log_path(job.id).open("ab")
        with log:
            child = subprocess.Popen(
                [sys.executable, "-m", "luthier.runs.submit", str(self.root), job.id],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "LUTHIER_RUNS": str(self.root)},
            )
        _forget(child)
        return self.change(job.id, worker=identity(child.pid))

    def add(self, run: RunDirectory, *, first: bool = False) -> QueuedJob:
        """Let a run that was prepared wait for its start. Errors: AlreadyBusy."""
        request = JobRequest(kind="train", run=run.id, source="clone", first=first)
        self._demand_free(run)
        job = self._insert(request, name=run.id, state="queued", run=run.id, key=None, need=need_of(run))
        self.wake()
        return job

    def prepared(self, job_id: str, run: RunDirectory) -> QueuedJob:
        """Say that an entry's run is ready to start."""
        with self._open() as db:  # cancelled meanwhile: it stays so
            db.execute("begin immediate")
            job = self.get(job_id)
            if job.state != "preparing":
                return job
        job = self.change(
            job_id,
            state="queued",
            run=run.id,
            need=need_of(run),
            devices=devices_of(run),
            worker=None,
            note="",
        )
        self._mark(job)
        self.wake()
        return job

    def failed(self, job_id: str, error: LuthierError | Exception) -> QueuedJob:
        """Say why an entry could not be prepared or started."""
        hint = error.hint if isinstance(error, LuthierError) else f"see {self.log_path(job_id)}"
        code = error.exit_code if isinstance(error, LuthierError) else 1
        words = str(error) if isinstance(error, LuthierError) else f"{type(error).__name__}: {error}"
        failure = Failure(kind=type(error).__name__, message=words, hint=hint, exit_code=code)
        return self.change(job_id, state="failed", failure=failure, worker=None, ended=time.time(), note="")

    def _submit_existing(self, request: JobRequest, key: str | None) -> QueuedJob:
        if request.run is None:
            raise UsageError(f"{request.kind} needs the run it is for")
        run = find_run(request.run, self.root)
        self._demand_free(run)
        if request.kind in ("evaluate", "export"):
            if request.job is None or request.job.kind != request.kind:
                raise UsageError(f"{request.kind} is asked for without what to do")
            if run.stage_values("train") is None:
                raise UsageError(
                    f"{run.id} has finished no training", hint=f"luthier train --resume {run.id}"
                )
        elif current_state(run) == "done":
            raise UsageError(f"{run.id} is done", hint="extend it, or clone it with other settings")
        name = request.name or run.id
        job = self._insert(request, name=name, state="queued", run=run.id, key=key, need=need_of(run))
        self.wake()
        return job

    def _demand_free(self, run: RunDirectory) -> None:
        status = run.status
        busy = status.worker is not None and current_state(run) in ACTIVE
        if busy or self.of_run(run.id) is not None:
            raise AlreadyBusy(
                f"{run.id} is being worked on or waits already",
                hint=f"see `luthier runs show {run.id}`, or wait until it is over",
            )

    def _insert(
        self,
        request: JobRequest,
        *,
        name: str,
        state: JobState,
        run: str | None,
        key: str | None,
        need: int = 0,
    ) -> QueuedJob:
        now = time.time()
        with self._open() as db:
            db.execute("begin immediate")
            low, high = db.execute(
                "select coalesce(min(position), 0), coalesce(max(position), 0) from jobs where state in "
                "('preparing', 'queued')"
            ).fetchone()
            job = QueuedJob(
                id=f"j{int(now):x}{secrets.token_hex(3)}",
                kind=request.kind,
                state=state,
                name=name,
                run=run,
                position=low - 1 if request.first else high + 1,
                created=now,
                need=need,
                devices=1 if run is None else devices_of(RunDirectory(self.root / run)),
                request=request,
            )
            db.execute(
                "insert into jobs values (?, ?, ?, ?, ?, ?)",
                (job.id, job.state, job.position, job.run, key, job.model_dump_json()),
            )
            db.commit()
        if run is not None:
            self._mark(job)
        return job

    # -- changing ----------------------------------------------------------------------------

    def change(self, job_id: str, **changes: Any) -> QueuedJob:
        """Change fields of an entry."""
        with self._open() as db:
            db.execute("begin immediate")
            row = db.execute("select body from jobs where id = ?", (job_id,)).fetchone()
            if row is None:
                raise NotQueued(f"there is no job {job_id!r}")
            job = QueuedJob.model_validate_json(row[0]).model_copy(update=changes)
            db.execute(
                "update jobs set state = ?, position = ?, run = ?, body = ? where id = ?",
                (job.state, job.position, job.run, job.model_dump_json(), job_id),
            )
            db.commit()
        return job

    def move(self, job_id: str, place: int) -> QueuedJob:
        """Put a waiting entry at a place among those that wait (0 is next). Errors: UsageError."""
        waiting = [one for one in self.jobs(frozenset({"queued", "preparing"})) if one.id != job_id]
        if self.get(job_id).state not in ("queued", "preparing"):
            raise AlreadyBusy("only what waits can be moved", hint="it has started, or is over")
        waiting.sort(key=lambda one: one.position)
        place = max(0, min(place, len(waiting)))
        before = waiting[place - 1].position if place else None
        after = waiting[place].position if place < len(waiting) else None
        if before is None:
            position = (after if after is not None else 0.0) - 1
        else:
            position = before + 1 if after is None else (before + after) / 2
        return self.change(job_id, position=position)

    def cancel(self, job_id: str) -> QueuedJob:
        """Take an entry back that has not started. Errors: UsageError where it has."""
        job = self.get(job_id)
        if job.state not in ("preparing", "queued"):
            raise AlreadyBusy(
                f"{job.name} is {job.state}: it can no longer be cancelled",
                hint=f"stop it: luthier runs stop {job.run}" if job.state == "running" else None,
            )
        job = self.change(job_id, state="cancelled", ended=time.time(), worker=None, note="")
        self._unmark(job)
        if job.run is not None and job.kind in ("train", "resume"):
            run = RunDirectory(self.root / job.run)
            if run.status.state == "queued" and run.status.worker is None:
                run.set_status(run.status.model_copy(update={"state": "stopped"}))
        return job

    # -- memory that others hold -------------------------------------------------------------

    def lease(self, lease: Lease) -> None:
        """Say that a process holds memory, until it ends or ``release`` is called."""
        folder = self.folder / "leases"
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{lease.worker.pid}"
        partial.write_text(lease.model_dump_json(), encoding="utf-8")
        partial.replace(folder / f"{lease.worker.pid}.json")

    def release(self, pid: int) -> None:
        """Take a lease back, and let what waits for it go on."""
        (self.folder / "leases" / f"{pid}.json").unlink(missing_ok=True)

    def leases(self) -> list[Lease]:
        """Leases of processes that live; those of dead ones are dropped."""
        found = []
        for path in sorted((self.folder / "leases").glob("*.json")):
            with contextlib.suppress(ValueError, OSError):
                lease = Lease.model_validate_json(path.read_text(encoding="utf-8"))
                if alive(lease.worker):
                    found.append(lease)
                    continue
            path.unlink(missing_ok=True)
        return found

    # -- scheduling --------------------------------------------------------------------------

    @property
    def lock(self) -> FileLock:
        """The lock of whoever starts workers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / "scheduler.lock")

    def wake(self) -> None:
        """Make sure that a scheduler looks after what waits. A second one ends by itself."""
        with contextlib.suppress(Timeout):
            lock = self.lock
            lock.acquire(timeout=0)
            lock.release()
            child = subprocess.Popen(
                [sys.executable, "-m", "luthier.runs.scheduler", str(self.root)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "LUTHIER_RUNS": str(self.root)},
            )
            _forget(child)

    def settle(self) -> None:
        """Bring entries up to date with what became of their processes."""
        for job in self.jobs(frozenset({"running", "preparing"})):
            if job.state == "preparing":
                if job.worker is not None and not alive(job.worker) and time.time() - job.created > 2:
                    fresh = self.get(job.id)
                    if fresh.state == "preparing":
                        self.failed(job.id, LuthierError("its preparation ended without a word (killed?)",
                                                         hint=f"see {self.log_path(job.id)}"))  # fmt: skip
                continue
            assert job.run is not None
            try:
                run = RunDirectory(self.root / job.run)
                state = current_state(run)
                status = run.status
            except LuthierError as error:  # its folder was removed
                self.failed(job.id, error)
                continue
            if state == "queued" and status.worker is None and not alive(job.worker):
                run.set_status(status.model_copy(update={"state": "lost"}))  # died before its first word
                state = "lost"
            if state not in ACTIVE:
                failure = run.status.failure
                if failure is not None:  # also of a job on top of a run that is done
                    state = "stopped" if failure.kind == "Interrupted" else "failed"
                self.change(job.id, state=state, failure=failure, ended=time.time())
        self._thin()

    def tick(self, machine: Hardware, start: Callable[..., Any] = start_worker) -> bool:
        """One look of the scheduler: start what may start. Returns whether anything is left to wait for."""
        self.settle()
        waiting = self.jobs(frozenset({"queued"}))
        for job in waiting:
            device, why = self._place(job, machine)
            if why is not None:
                if job.note != why:
                    self.change(job.id, note=why)
                break  # the order holds: a small one does not overtake
            self._start(job, device, machine, start)
        return bool(self.jobs(frozenset({"queued", "preparing"})))

    def _start(
        self, job: QueuedJob, device: int | None, machine: Hardware, start: Callable[..., Any]
    ) -> None:
        assert job.run is not None
        run = RunDirectory(self.root / job.run)
        self.change(job.id, state="running", started=time.time(), device=device, note="")
        self._unmark(job)
        if device is not None and len(machine.accelerators) > 1:
            os.environ["CUDA_VISIBLE_DEVICES"] = str(device)  # the worker's, as it inherits all of ours
        try:
            child = start(run, job.request.job)
            self.change(job.id, worker=identity(child.pid))
            _forget(child)
        except Exception as error:  # one that cannot start does not hold up the others
            self.failed(job.id, error)

    def _place(self, job: QueuedJob, machine: Hardware) -> tuple[int | None, str | None]:
        """The device that an entry may start on now, or why it waits."""
        cards = machine.accelerators
        totals: dict[int | None, int] = {c.index: c.memory_total for c in cards}
        totals = totals or {None: machine.memory_total}
        held: dict[int | None, int] = dict.fromkeys(totals, 0)
        busy: dict[int | None, str] = {}
        mine = {one.run: one for one in self.jobs(frozenset({"running"}))}
        for run in list_runs(self.root):
            try:
                status = run.status
            except LuthierError:
                continue
            if status.state not in ACTIVE or (status.worker is None and run.id not in mine):
                continue
            if current_state(run) not in ACTIVE:
                continue
            entry = mine.get(run.id)
            place = entry.device if entry is not None else next(iter(totals))
            held[place] = held.get(place, 0) + need_of(run)
            busy[place] = run.id
        for lease in self.leases():
            place = lease.device if lease.device in held else next(iter(totals))
            held[place] += lease.bytes
        free = {place: int(total * USABLE) - held[place] for place, total in totals.items()}
        if job.devices > 1:  # it takes every card, and is alone on them
            who = next(iter([*busy.values(), *(one.name for one in self.leases())]), None)
            return None, None if who is None else f"waits for {who}: it needs {job.devices} GPUs"
        open_places = [place for place in totals if place not in busy]
        if not open_places:
            return None, f"waits for {next(iter(busy.values()))}"
        place = max(open_places, key=lambda one: free[one])
        if job.need <= free[place] or held[place] == 0:
            return place, None  # what fits on no empty device tells so itself
        return None, self._make_room(job, place, job.need - free[place])

    def _make_room(self, job: QueuedJob, place: int | None, missing: int) -> str:
        """Ask served models on a device to leave, with notice; those whose time is up are ended."""
        asked = []
        for lease in self.leases():
            if not lease.evictable or lease.device != place:
                continue
            if lease.leave_by is None:
                self.lease(lease.model_copy(update={"leave_by": time.time() + NOTICE}))
            elif time.time() > lease.leave_by:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(lease.worker.pid, signal.SIGTERM)
            asked.append(lease.name)
        who = f"; asked to leave: {', '.join(asked)}" if asked else ""
        return f"waits for {memory(missing)} more memory (needs {memory(job.need)}){who}"

    # -- the file ----------------------------------------------------------------------------

    @property
    def _file(self) -> Path:
        return self.folder / "queue.sqlite"

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        fresh = not self._file.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(self._file, timeout=20, isolation_level=None)
        try:
            if fresh:
                db.execute("pragma journal_mode = wal")
                db.executescript(_SCHEMA)
                self._rebuild(db)
            db.execute("pragma synchronous = normal")
            yield db
        finally:
            db.close()

    def _rebuild(self, db: sqlite3.Connection) -> None:
        """What was waiting waits again, in its order of entry."""
        for path in self._marks():
            try:
                job = QueuedJob.model_validate_json(path.read_text(encoding="utf-8"))
            except ValueError:
                continue
            db.execute(
                "insert or ignore into jobs values (?, ?, ?, ?, ?, ?)",
                (job.id, job.state, job.position, job.run, None, job.model_dump_json()),
            )

    # What waits is written into its run's folder too, so that the index can be lost.

    def _marks(self) -> list[Path]:
        return sorted(self.root.glob(f"*/{MARK}"))

    def _mark(self, job: QueuedJob) -> None:
        assert job.run is not None
        write_text(self.root / job.run / MARK, job.model_dump_json())

    def _unmark(self, job: QueuedJob) -> None:
        if job.run is not None:
            (self.root / job.run / MARK).unlink(missing_ok=True)

    def _thin(self) -> None:
        over = [one for one in self.jobs() if one.state not in OPEN][KEEP:]
        if over:
            with self._open() as db:
                db.executemany("delete from jobs where id = ?", [(one.id,) for one in over])
            for one in over:
                self.log_path(one.id).unlink(missing_ok=True)


def need_of(run: RunDirectory) -> int:
    """Bytes of its device's memory that a run takes: the larger of what was predicted and what was seen."""
    estimate = load_estimate(run)
    on_gpu = bool((run.stage_values("hardware") or {}).get("accelerators"))
    predicted = 0.0 if estimate is None else estimate.process.expected
    # On a GPU the resident set of the process says nothing of the card.
    measured = (run.stage_values("train") or {}).get("peak_memory", 0) if on_gpu else 0
    seen = measured if on_gpu else max(run.status.peak_memory.values(), default=0)
    return int(max(predicted, seen))


def devices_of(run: RunDirectory) -> int:
    """Accelerators that a run trains on together."""
    return getattr(run.recipe.training, "devices", None) or 1


def _forget(child: subprocess.Popen[bytes]) -> None:
    """Leave a child to itself: it is told by its name from now on, and reaped when it ends."""
    threading.Thread(target=child.wait, name=f"reap-{child.pid}", daemon=True).start()
