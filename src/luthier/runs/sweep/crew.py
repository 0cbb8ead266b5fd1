"""The runs of a sweep at work: as many at once as asked for and memory allows, followed by their files."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from luthier.errors import LuthierError
from luthier.planning.audit import audit
from luthier.planning.estimate import device_of
from luthier.planning.solver import memory_budget
from luthier.runs.directory import RunDirectory, runs_root
from luthier.runs.lineage import settings
from luthier.runs.model import Say
from luthier.runs.prepare import Prepared, create_run, prepare
from luthier.runs.process import ACTIVE, current_state, start_worker
from luthier.schema.recipe import Recipe
from luthier.schema.results import TrainResult
from luthier.schema.run import Changed, Job, Origin, State

POLL = 0.2
"""Seconds between two looks at the runs."""
NAMELESS = 30.0
"""Seconds within which a worker that was started writes its name."""
Stopping = Callable[[], bool]


@dataclass
class Working:
    """One run at work."""

    number: int
    run: RunDirectory
    job: Job | None
    reserved: int
    """Bytes that it was predicted to need."""
    offset: int = 0
    losses: list[tuple[float, float]] = field(default_factory=list)
    """Share of the training -> validation loss, in the order of the run's metrics."""
    total: int | None = None
    """Steps of the training, once they are known."""

    def read(self) -> list[tuple[float, float]]:
        """Validation losses written since the last look."""
        fresh = []
        for values, offset in self.run.lines("metrics", self.offset):
            self.offset = offset
            if values.get("kind") in ("step", "skipped", "resumed"):
                self.total = int(values["total_steps"])
            elif values.get("kind") == "validation" and self.total:
                fresh.append((int(values["step"]) / self.total, float(values["loss"])))
        self.losses += fresh
        return fresh


class Crew:
    """Starts and follows runs. Memory is shared out by prediction: a run waits until there is room."""

    def __init__(self, jobs: int) -> None:
        hardware = audit(runs_root())
        device = device_of(hardware)
        self.jobs = jobs
        self.budget = memory_budget(hardware, device)
        self.threads = max(1, hardware.processor.cores // jobs) if jobs > 1 and device == "cpu" else None
        self.active: list[Working] = []

    @property
    def free(self) -> bool:
        """Whether one more may be started, as far as their number goes."""
        return len(self.active) < self.jobs

    def has_room(self, needed: int) -> bool:
        """Whether so many bytes are left beside what the others were predicted to need."""
        return not self.active or sum(one.reserved for one in self.active) + needed <= self.budget

    def start(self, number: int, run: RunDirectory, job: Job | None, *, reserved: int = 0) -> Working:
        """Start a run's worker, or take up one that is at work already."""
        working = Working(number, run, job, reserved)
        _settle(run)
        if run.status.worker is None or current_state(run) not in ACTIVE:
            start_worker(run, job, threads=self.threads)
        self.active.append(working)
        return working

    def ended(self) -> list[tuple[Working, State]]:
        """Runs that are over since the last look; they are no longer active."""
        found = []
        for one in list(self.active):
            state = current_state(one.run)
            if state not in ACTIVE:
                one.read()
                self.active.remove(one)
                found.append((one, state))
        return found

    def follow(
        self,
        *,
        start_more: Callable[[], None],
        more: Callable[[], bool],
        fresh: Callable[[Working, list[tuple[float, float]]], None],
        over: Callable[[Working, State], None],
        tell: Callable[[], None],
        stopping: Stopping,
    ) -> None:
        """Start and follow runs until there are no more, or until somebody wants to stop.

        start_more: starts what there is room for. more: whether something waits for room. fresh: told new
        validation losses of a run. over: told a run that has ended. tell: called after each look.
        """
        while not stopping():
            start_more()
            if not self.active and not more():
                return
            for one in self.active:
                if losses := one.read():
                    fresh(one, losses)
            for working, state in self.ended():
                over(working, state)
            tell()
            if self.active:
                time.sleep(POLL)
        self.stop()

    def stop(self) -> None:
        """Ask all runs to stop after their step, and wait until they have saved their work."""
        for one in self.active:
            one.run.ask("stop")
        while any(current_state(one.run) in ACTIVE for one in self.active):
            time.sleep(POLL)
        self.active.clear()


def _settle(run: RunDirectory) -> None:
    """Wait for a worker that an earlier process has just started and that has not written its name yet."""
    status, log = run.path / "status.json", run.path / "log.txt"
    while log.exists() and run.status.state == "queued" and run.status.worker is None:
        if time.time() - status.stat().st_mtime > NAMELESS:
            return  # it died before it came to that
        time.sleep(POLL)


def needed_by(prepared: Prepared) -> int:
    """Bytes that a run's process is predicted to need, the upper end of the band."""
    return round(prepared.resolved.estimate.process.high)


def prepare_quietly(recipe: Recipe, say: Say | None = None) -> Prepared:
    """As ``prepare``; what is said for each run alike is not repeated."""
    return prepare(recipe, say=say or (lambda _words: None))


def run_for(prepared: Prepared, run_id: str, sweep: Path, before: Recipe) -> RunDirectory:
    """The directory of one run of a sweep: made, or found where an earlier process has made it."""
    path = runs_root() / run_id
    if (path / "origin.json").exists():
        return RunDirectory(path)
    if path.exists():
        shutil.rmtree(path)  # a kill left it half made: what is written last is missing
    run = create_run(prepared, run_id=run_id)
    given, now = settings(before), settings(prepared.recipe)
    derived = prepared.recipe.sources
    changed = {
        key: Changed(before=given.get(key), after=value)
        for key, value in now.items()
        if given.get(key) != value and key not in derived and key != "name"
    }
    run.save_stage("origin", "", Origin(kind="sweep", parent=sweep.name, path=str(sweep), changed=changed))
    return run


def run_named(name: str) -> RunDirectory | None:
    """A run of a sweep by its id; None where its folder is gone."""
    path = runs_root() / name
    return RunDirectory(path) if (path / "status.json").exists() else None


def train_result(run: RunDirectory) -> TrainResult | None:
    """What a finished training says of itself."""
    return run.stage("train", TrainResult)


def why_failed(run: RunDirectory, state: State) -> str:
    """One line on a run that did not end well."""
    failure = run.status.failure
    if state == "failed" and failure is not None:
        return failure.message
    if state == "stopped":
        return "stopped by hand"
    return "its worker is gone without a word (killed, or out of memory)"


def first_line(error: LuthierError) -> str:
    """An error's own words, without its hints."""
    return error.message.strip().splitlines()[0]
