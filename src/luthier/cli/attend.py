"""Attend a run: start its worker, show each stage as it ends, leave with the run's exit code."""

from __future__ import annotations

from luthier.cli import story
from luthier.cli.console import err, out, print_json
from luthier.cli.follow import Follower
from luthier.errors import Interrupted
from luthier.runs.abilities import load_abilities
from luthier.runs.directory import RunDirectory
from luthier.runs.process import current_state, raise_for_end, start_worker
from luthier.runs.stages import (
    load_artifacts,
    load_comparisons,
    load_estimate,
    load_floors,
    load_results,
)
from luthier.schema.measurement import Measurement
from luthier.schema.nodes import Place
from luthier.schema.results import TrainResult
from luthier.schema.run import Job

TITLES = {
    "baseline": ("Baseline", "the untouched model on the held-out rows"),
    "train": ("Train", ""),
    "prove": ("Prove", "the tuned model on the same rows"),
    "ship": ("Ship", "written, read back as others will and checked against the trained model"),
    "report": ("Report", ""),
}


class Attendant:
    """Prints the heading of a stage when it starts and its results when it ends."""

    def __init__(self, run: RunDirectory, first_number: int | None) -> None:
        self.run = run
        self._numbers = {} if first_number is None else {n: first_number + i for i, n in enumerate(TITLES)}

    def __call__(self, stage: str, state: str) -> None:
        title, sentence = TITLES.get(stage, (stage, ""))
        if state == "start":
            story.heading(self._numbers.get(stage), title, sentence)
            return
        if state == "skipped":
            story.heading(self._numbers.get(stage), title, "done before, from the same inputs")
        getattr(self, f"_{stage}", lambda: None)()

    def _baseline(self) -> None:
        story.show_scores(load_results(self.run, "baseline"))

    def _train(self) -> None:
        result = self.run.stage("train", TrainResult)
        if result is not None:
            story.show_training(result, load_estimate(self.run))

    def _prove(self) -> None:
        comparisons = load_comparisons(self.run)
        if not comparisons:
            out().print("  [dim]no test rows: nothing was proved[/]")
            return
        story.show_comparisons(comparisons, load_floors(self.run))
        story.show_abilities(load_abilities(self.run))
        split = comparisons[0].split
        baseline, tuned = load_results(self.run, "baseline"), load_results(self.run, "tuned")
        if split in baseline and split in tuned:
            story.show_samples(baseline[split], tuned[split], self.run.recipe.evaluation.samples)

    def _ship(self) -> None:
        story.show_artifacts(load_artifacts(self.run), self.run.path / "artifacts")

    def _report(self) -> None:
        story.show_times(self.run.status)
        out().print(f"  report  {self.run.path / 'report.html'}", soft_wrap=True)


def attend(
    run: RunDirectory,
    job: Job | None = None,
    *,
    first_number: int | None = None,
    quiet: bool = False,
    place: Place | None = None,
) -> int:
    """Start the run's worker and show it until it is over. Returns the exit code.

    quiet: leave stdout to the caller; progress still goes to stderr. place: of this machine among several.
    """
    shown = (lambda _stage, _state: None) if quiet else Attendant(run, first_number)
    follower = Follower(run, shown, from_start=False)
    start_worker(run, job, place=place)
    state = follower.follow()
    if state is None:
        return 0
    if state == "stopped":
        err().print(f"stopped; go on with: luthier train --resume {run.id}")
        return Interrupted.exit_code
    raise_for_end(run)
    return 0


def run_json(run: RunDirectory) -> None:
    """Print a run as one JSON object."""
    result = run.stage("train", TrainResult)
    measured = run.stage("measurement", Measurement)
    print_json(
        {
            "run": run.id,
            "path": str(run.path),
            "state": current_state(run),
            "train": None if result is None else result.model_dump(mode="json"),
            "origin": run.stage_values("origin"),
            "measurement": None if measured is None else measured.model_dump(mode="json"),
            "comparisons": [c.model_dump(mode="json") for c in load_comparisons(run)],
            "artifacts": [a.model_dump(mode="json") for a in load_artifacts(run)],
        }
    )
