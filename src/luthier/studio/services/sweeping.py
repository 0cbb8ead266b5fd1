"""Sweeps: what was searched, compared or measured by rows; started from a run's own recipe."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import UsageError
from luthier.files import write_text
from luthier.runs.directory import RunDirectory, find_run
from luthier.runs.process import ACTIVE, alive, current_state, identity, torch_environment
from luthier.runs.report.charts import Chart
from luthier.runs.sweep.folder import WORKER, SweepFolder, find_sweep, list_sweeps, name_for
from luthier.runs.sweep.page import charts, columns, headline, note_of, ordered, sentences
from luthier.runs.sweep.space import as_written, edges, split_words
from luthier.schema.load import load_recipe
from luthier.schema.sweep import SweepChoice, SweepResult, Trial
from luthier.studio.problems import Conflict, NotFound
from luthier.studio.settings import StudioSettings

STATES = {"running": "busy", "done": "ok", "pruned": "warn", "infeasible": "warn", "failed": "bad"}
MOST_TRIALS = 500


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One trial as the table shows it."""

    trial: Trial
    cells: tuple[tuple[str, bool], ...]
    """Text, and whether it is a number."""
    best: bool
    note: str
    pill: str


@dataclass(frozen=True, slots=True)
class SweepView:
    """One sweep as it is now."""

    name: str
    choice: SweepChoice
    result: SweepResult | None
    running: bool
    log: str

    @property
    def headline(self) -> str:
        """What was found, in one line."""
        return headline(self.result) if self.result is not None else "Nothing was tried yet"

    @property
    def sentences(self) -> list[str]:
        """What the table does not say by itself."""
        return sentences(self.result) if self.result is not None else []

    @property
    def heads(self) -> list[tuple[str, bool]]:
        """Columns of the table, and whether they hold numbers."""
        return [(one.head, one.number) for one in columns(self.result)] if self.result is not None else []

    @property
    def rows(self) -> list[TrialRow]:
        """Trials, best first."""
        if self.result is None:
            return []
        shown = columns(self.result)
        return [
            TrialRow(
                trial=trial,
                cells=tuple((column.cell(trial), column.number) for column in shown),
                best=trial.number == self.result.best,
                note=note_of(trial),
                pill=STATES[trial.state],
            )
            for trial in ordered(self.result)
        ]

    @property
    def charts(self) -> list[Chart]:
        """The course of the search, losses, each setting; or the learning curve."""
        return charts(self.result) if self.result is not None else []

    @property
    def space(self) -> list[tuple[str, str]]:
        """Settings that are searched, as they are written."""
        return [(axis.key, as_written(axis)) for axis in self.choice.space]


def sweeps(settings: StudioSettings) -> list[SweepView]:
    """All sweeps, newest first."""
    return [_view(folder) for folder in list_sweeps(settings.runs)]


def sweep_named(settings: StudioSettings, name: str) -> SweepFolder:
    """A sweep by its name, never by a path. Errors: NotFound."""
    if len(name) > 120 or "/" in name or "\\" in name or "\0" in name or name.startswith((".", "~")):
        raise NotFound(f"there is no sweep {name[:80]!r}", hint="see /sweeps")
    try:
        found = find_sweep(name, settings.runs)
    except UsageError as error:
        raise NotFound(error.message, hint=error.hint) from None
    if not found.path.resolve().is_relative_to((settings.runs / "sweeps").resolve()):
        raise NotFound(f"there is no sweep {name[:80]!r}", hint="see /sweeps")
    return found


def view_of(folder: SweepFolder) -> SweepView:
    """A sweep as it is now. Errors: FileProblem."""
    return _view(folder)


def _view(folder: SweepFolder) -> SweepView:
    result = folder.result
    running = alive(folder.worker) or _has_live_trial(folder, result)
    log = ""
    with contextlib.suppress(FileNotFoundError):
        log = (folder.path / "log.txt").read_bytes()[-8192:].decode("utf-8", "replace")
    return SweepView(folder.path.name, folder.choice, result, running, "\n".join(log.splitlines()[-15:]))


def _has_live_trial(folder: SweepFolder, result: SweepResult | None) -> bool:
    """Whether a trial is being trained, whoever started the sweep."""
    for trial in result.trials if result is not None else ():
        if trial.state == "running" and trial.run is not None:
            with contextlib.suppress(UsageError):
                if current_state(find_run(trial.run, folder.path.parent.parent)) in ACTIVE:
                    return True
    return False


def start_sweep(
    settings: StudioSettings, run: RunDirectory, words: Sequence[str], *, trials: int = 12
) -> SweepFolder:
    """Search settings around a run's recipe, in a process that outlives the studio.

    words: ranges, lists and plain settings as the command line takes them. Errors: UsageError, RecipeError
    for a setting that there is not or a value that it cannot have.
    """
    if not 1 <= trials <= MOST_TRIALS:
        raise UsageError(f"{trials} trials cannot be run", hint=f"from 1 to {MOST_TRIALS}")
    space, fixed = split_words(words)
    if not space:
        raise UsageError(
            "nothing is varied", hint="write a range or a list: training.learning_rate=1e-5..1e-3:log"
        )
    recipe = run.path / "recipe.yaml"
    shared = load_recipe(recipe, fixed)
    for ends in edges(space):
        load_recipe(recipe, (*fixed, *(f"{key}={value}" for key, value in ends.items())))
    choice = SweepChoice(name=name_for(shared, "search"), space=space, trials=trials)
    folder = SweepFolder.create(choice, shared, root=settings.runs)
    go_on(settings, folder)
    return folder


def go_on(settings: StudioSettings, folder: SweepFolder) -> None:
    """Work on a sweep that was made, stopped or killed. Errors: Conflict where somebody is at it."""
    if _view(folder).running:
        raise Conflict(f"{folder.path.name} is being worked on", hint="wait for its end, or stop it")
    with (folder.path / "log.txt").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "luthier", "sweep", "--resume", str(folder.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=torch_environment() | {"LUTHIER_RUNS": str(settings.runs)},
        )
    write_text(folder.path / WORKER, identity(child.pid).model_dump_json() + "\n")
    threading.Thread(target=child.wait, name=f"end of {folder.path.name}", daemon=True).start()


def stop_sweep(folder: SweepFolder) -> None:
    """Ask a sweep to stop and keep its work, whoever started it. Errors: Conflict where nobody is at it."""
    worker = folder.worker
    if worker is None or not alive(worker):
        raise Conflict(f"nobody works on {folder.path.name}", hint="its trials are kept; go on when you like")
    with contextlib.suppress(ProcessLookupError):
        os.kill(worker.pid, signal.SIGINT)


def report_of(folder: SweepFolder) -> Path | None:
    """The sweep's own page, once it is written."""
    path = folder.path / "report.html"
    return path if path.is_file() else None
