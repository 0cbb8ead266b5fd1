"""Jobs that were written, handed over, followed: each one file below the runs' folder."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from pydantic import ValidationError

from luthier.errors import LuthierError, ToolchainError, UsageError, did_you_mean
from luthier.files import write_text
from luthier.runs.directory import runs_root
from luthier.runs.launch import kubernetes, skypilot, slurm
from luthier.runs.launch.cargo import Cargo, load_along, load_in_place
from luthier.runs.launch.tools import demand
from luthier.schema.launch import ENDED, Cluster, Cost, JobState, LaunchChoice, LaunchedJob
from luthier.schema.load import recipe_from, recipe_values
from luthier.schema.recipe import Recipe


class Tool(Protocol):
    """What is asked of a cluster's own program."""

    def submit(self, job: LaunchedJob, /) -> str:
        """Hand the job over; the cluster's name of it."""

    def state(self, job: LaunchedJob, /) -> tuple[JobState, str]:
        """State now, and in the cluster's words."""

    def bring(self, job: LaunchedJob, target: Path, /) -> Path:
        """Bring the run's folder below another."""

    def cancel_words(self, job: LaunchedJob, /) -> str:
        """How to end the job."""


TOOLS: dict[Cluster, Tool] = {"slurm": slurm, "skypilot": skypilot, "kubernetes": kubernetes}
PROGRAMS: dict[Cluster, str] = {"slurm": "sbatch", "skypilot": "sky", "kubernetes": "kubectl"}
ENDINGS: dict[Cluster, str] = {"slurm": ".sbatch", "skypilot": ".sky.yaml", "kubernetes": ".k8s.yaml"}
POLL = 10.0
"""Seconds between two questions for a job's state."""
DEAF = 30
"""Questions in a row without an answer after which following ends."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Written:
    """A job, ready to be written and handed over."""

    job: LaunchedJob
    text: str
    """The job file."""
    recipe: str
    """The job's recipe."""
    cargo: Cargo


def jobs_folder() -> Path:
    """Where jobs are kept."""
    return runs_root() / ".jobs"


def plan_job(choice: LaunchChoice, recipe: Recipe, *, file: Path | None, cost: Cost) -> Written:
    """A job with its file, checked; nothing is written yet. recipe: as `recipe_for` gives it.

    Errors: UsageError for what the cluster would refuse, FileProblem for a file that is missing.
    """
    folder, runs = jobs_folder(), runs_root()
    own = folder / f"{choice.name}.recipe.yaml"
    log = None
    if choice.on == "slurm":
        cargo = load_in_place(recipe)
        log = folder / f"{choice.name}.log"
        text = slurm.write(choice, recipe=own, runs=runs, log=log, home=Path.cwd())
        slurm.check(text)
        there = str(runs)
    elif choice.on == "skypilot":
        cargo = load_along(recipe)
        text, there = skypilot.write(choice, cargo, recipe=own), choice.bucket or skypilot.RUNS
    else:
        cargo = kubernetes.place_on_volume(load_along(recipe), choice.name)
        text, there = kubernetes.write(choice, cargo), kubernetes.RUNS
        kubernetes.check(text)
    recipe_from(recipe_values(cargo.recipe))  # what was written is a recipe
    path = file or Path(f"{choice.name}{ENDINGS[choice.on]}")
    job = LaunchedJob(
        choice=choice,
        file=str(path.expanduser().absolute()),
        runs=there,
        log=None if log is None else str(log),
        created=time.time(),
        cost=cost,
    )
    return Written(job, text, cargo.recipe, cargo)


def keep(written: Written) -> LaunchedJob:
    """Write job file, recipe and record. Errors: UsageError where there is such a job."""
    job = written.job
    if _path(job.choice.name).exists():
        raise UsageError(
            f"there is a job {job.choice.name} already",
            hint=f"give another --name, or follow it: luthier launch --follow {job.choice.name}",
        )
    write_text(jobs_folder() / f"{job.choice.name}.recipe.yaml", written.recipe)
    write_text(Path(job.file), written.text)
    if job.choice.on == "skypilot":
        skypilot.check(written.text)
    return save(job)


def save(job: LaunchedJob) -> LaunchedJob:
    """Replace a job's record."""
    write_text(_path(job.choice.name), job.model_dump_json(indent=1) + "\n")
    return job


def _path(name: str) -> Path:
    return jobs_folder() / f"{name}.job.json"


def list_jobs() -> list[LaunchedJob]:
    """All jobs, newest first."""
    found = []
    for path in jobs_folder().glob("*.job.json"):
        with contextlib.suppress(ValidationError, OSError):
            found.append(LaunchedJob.model_validate_json(path.read_text(encoding="utf-8")))
    return sorted(found, key=lambda job: job.created, reverse=True)


def find_job(name: str) -> LaunchedJob:
    """A job by its name, the unique beginning of one, the cluster's number, or latest. Errors: UsageError."""
    jobs = list_jobs()
    if name == "latest" and jobs:
        return jobs[0]
    exact = [job for job in jobs if name in (job.choice.name, job.id)]
    found = exact or [job for job in jobs if job.choice.name.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{name!r} is the beginning of {len(found)} jobs", hint="write more of the name")
    near = did_you_mean(name, [job.choice.name for job in jobs])
    raise UsageError(f"there is no job {name!r}", hint=near or "see luthier launch --list")


def submit(job: LaunchedJob) -> LaunchedJob:
    """Hand a job over. Errors: ToolchainError."""
    demand(PROGRAMS[job.choice.on])
    found = TOOLS[job.choice.on].submit(job)
    return save(job.model_copy(update={"id": found, "submitted": time.time(), "state": "pending"}))


def look(job: LaunchedJob) -> LaunchedJob:
    """A job with its state as it is now. Errors: ToolchainError."""
    if job.id is None or job.state in ENDED:
        return job
    state, words = TOOLS[job.choice.on].state(job)
    ended = time.time() if state in ENDED else None
    return save(job.model_copy(update={"state": state, "words": words, "ended": ended}))


def bring(job: LaunchedJob) -> LaunchedJob:
    """Bring the run's folder here. Errors: ToolchainError."""
    here = TOOLS[job.choice.on].bring(job, runs_root())
    if not (here / "status.json").is_file():
        raise ToolchainError(f"no run came with it: {here}", hint="look at the job's log; the job is over")
    return save(job.model_copy(update={"brought": str(here)}))


def cancel_words(job: LaunchedJob) -> str:
    """How to end a job."""
    return TOOLS[job.choice.on].cancel_words(job)


def follow(job: LaunchedJob, *, say: Say, line: Say, poll: float = POLL) -> LaunchedJob:
    """Tell state and log until the job is over. say: about the job; line: of its log.

    A question that is not answered is asked again; after `DEAF` of them: ToolchainError.
    """
    before, deaf = "", 0
    with _log(job, line) as log:
        while True:
            try:
                job, deaf = look(job), 0
            except ToolchainError as error:
                deaf += 1
                if deaf == 1:
                    say(f"no answer: {error.message}")
                if deaf >= DEAF:
                    raise
            if (now := f"{job.state}: {job.words}") != before:
                before = now
                say(now)
            log.go_on(job)
            if job.state in ENDED:
                log.rest()
                return job
            time.sleep(poll)


class _Log:
    """A job's log: a file that grows, or what a program prints."""

    def __init__(self, job: LaunchedJob, line: Say) -> None:
        self._line = line
        self._file = None if job.log is None else Path(job.log)
        self._offset = 0
        self._child: subprocess.Popen[str] | None = None
        self._seen = 0
        self._reader: threading.Thread | None = None

    def go_on(self, job: LaunchedJob) -> None:
        """Print what is new; start the program that prints where the job runs and it does not."""
        if self._file is not None:
            self._read()
        elif job.state == "running" and (self._child is None or self._child.poll() is not None):
            self._start(job)

    def rest(self) -> None:
        """Print what is left."""
        if self._file is not None:
            self._read()
        elif self._reader is not None:
            self._reader.join(timeout=10)

    def close(self) -> None:
        """End the program that prints."""
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()
            self._child.wait()

    def _read(self) -> None:
        assert self._file is not None
        with contextlib.suppress(FileNotFoundError), self._file.open("rb") as file:
            file.seek(self._offset)
            for raw in file:
                if raw.endswith(b"\n"):
                    self._offset += len(raw)
                    self._line(raw.decode("utf-8", "replace").rstrip())

    def _start(self, job: LaunchedJob) -> None:
        words = skypilot.log(job) if job.choice.on == "skypilot" else kubernetes.log(job)
        self._child = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            errors="replace", start_new_session=True,
        )  # fmt: skip
        assert self._child.stdout is not None
        # A log that is asked for again begins at its beginning.
        known, self._seen = self._seen, 0
        self._reader = threading.Thread(
            target=self._print,
            args=(self._child.stdout, known if job.choice.on == "skypilot" else 0),
            daemon=True,
        )
        self._reader.start()

    def _print(self, lines: IO[str], known: int) -> None:
        with lines:
            for text in lines:
                self._seen += 1
                if self._seen > known:
                    self._line(text.rstrip())


@contextmanager
def _log(job: LaunchedJob, line: Say) -> Iterator[_Log]:
    found = _Log(job, line)
    try:
        yield found
    finally:
        found.close()


def ended_badly(job: LaunchedJob) -> LuthierError:
    """Why a followed job is not done."""
    return ToolchainError(
        f"job {job.choice.name} is {job.state}: {job.words}",
        hint=f"its log: {job.log or 'above'}; a job that is submitted again under its name goes on where its "
        f"run stood: luthier launch --again {job.choice.name}",
    )
