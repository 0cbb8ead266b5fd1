"""The stages of a run, in the worker: baseline, train, prove, ship, report.

Each stage leaves one file that carries the digest of its inputs; a stage whose file and inputs
match is not done again, so a run that was killed goes on where it stood.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.catalog.purposes import spec_of, tunes_preferences
from luthier.data.splits import choose
from luthier.data.tokenizer import FileTokenizer
from luthier.errors import CheckpointError, FileProblem
from luthier.evaluation.compare import compare
from luthier.hub.cache import room
from luthier.runs.abilities import probe_base, probe_tuned, probed
from luthier.runs.crew import crew_of, order_of
from luthier.runs.directory import RunDirectory, digest_of
from luthier.runs.measurements import keep_measurement
from luthier.runs.prepare import read_corpus, read_data, read_tests, tokenizer_of
from luthier.runs.ranks import train_together
from luthier.runs.recorder import Recorder
from luthier.runs.stages import load_artifacts, load_floor_results, load_results
from luthier.schema.recipe import ExportChoice, Recipe
from luthier.schema.results import EvalResult, TrainResult
from luthier.schema.run import Job, Stage
from luthier.training.trackers import open_trackers

if TYPE_CHECKING:
    from luthier.data.load import LoadedData
    from luthier.runs.crew import Crew
    from luthier.runs.worker import Board
    from luthier.tasks.base import ModelTask


WITHOUT_EFFECT = (
    "devices", "nodes", "parallel", "keep_last", "background_checkpoints", "trackers", "profile_steps",
    "offload_parameters",
)  # fmt: skip
"""Settings of training that change neither weights nor scores: a run may go on with others."""


@dataclass
class Inputs:
    """What a run works on; heavy things are made when first needed."""

    run: RunDirectory
    recipe: Recipe
    device: str | None = field(default=None, kw_only=True)
    """Where the model goes; None: where the run was prepared for."""
    divided: bool = field(default=False, kw_only=True)
    """Whether it will be divided over several devices."""

    @cached_property
    def model_facts(self) -> dict[str, Any]:
        """What was written of the base model when the run was prepared: path, id, revision, device."""
        return self.run.stage_values("model") or {}

    @cached_property
    def model_dir(self) -> Path:
        """The base model's folder."""
        facts = self.model_facts
        if not facts or not (Path(facts["path"]) / "config.json").exists():
            raise FileProblem(
                f"the base model {self.recipe.model.id} is no longer where it was",
                file=facts.get("path"),
                hint="fetch it again with `luthier get`, then `luthier train --resume`",
            )
        return Path(facts["path"])

    @cached_property
    def tokenizer(self) -> FileTokenizer:
        """The base model's own tokenizer."""
        env = self.run.stage_values("env") or {}
        now = datetime.fromisoformat(env["now"]) if "now" in env else None
        return tokenizer_of(self.recipe, self.model_dir, now=now)

    @cached_property
    def data(self) -> LoadedData:
        """The run's splits; refused where the files have changed since the run was prepared."""
        data = read_data(self.recipe, self.tokenizer)
        known = self.run.stage_values("data")
        if known is not None and known["digest"] != data.report.digest:
            raise CheckpointError(
                "the data files have changed since this run was started",
                file=self.recipe.data.train[0],
                hint="start a new run with `luthier train`, or bring the old files back",
            )
        return data

    @cached_property
    def tests(self) -> dict[str, Sequence[Any]]:
        """Held-out rows by split, no more of each than the recipe asks for."""
        most = self.recipe.evaluation.max_rows
        splits = self.data.splits.tests
        return {name: choose(rows, most or len(rows), seed=self.recipe.seed) for name, rows in splits.items()}

    @cached_property
    def task(self) -> ModelTask:
        """The model in memory, ready to answer and to be trained."""
        from luthier.tasks.registry import load_task

        task = load_task(
            self.recipe,
            self.model_dir,
            self.tokenizer,
            device=self.device or self.model_facts["device"],
            cache=room("digests") / "weights.json",
            divided=self.divided,
        )
        task.splits = self.data.splits
        return task

    @cached_property
    def data_digest(self) -> str:
        """Digest of all rows, without reading them again."""
        known = self.run.stage_values("data")
        return str(known["digest"]) if known is not None else self.data.report.digest

    def digest(self, *sections: str) -> str:
        """Digest of the data and of some sections of the recipe."""
        # Without what stands at its default: a recipe field of a later version must not make an earlier
        # run's checkpoints those of another recipe.
        values = self.recipe.model_dump(mode="json", exclude_defaults=True)
        for key in WITHOUT_EFFECT:
            values.get("training", {}).pop(key, None)
        own = spec_of(self.recipe.task).section
        named = (*sections, own) if own is not None and values.get(own) is not None else sections
        named = (*named, "vision") if self.recipe.vision is not None else named
        return digest_of(self.data_digest, *(f"{name}={values.get(name)!r}" for name in named))

    @cached_property
    def judged(self) -> str:
        """Digest of what a baseline depends on."""
        return self.digest("model", "evaluation", "seed")

    @cached_property
    def trained(self) -> str:
        """Digest of what a training depends on."""
        return self.digest("task", "model", "method", "training", "seed")


@dataclass
class Work(Inputs):
    """What the stages of one run share."""

    board: Board
    crew: Crew | None = field(default=None, kw_only=True)
    """The other machines that train the run together with this one."""


def execute(run: RunDirectory, board: Board, job: Job | None = None) -> None:
    """Do every stage that is not done, or one job. Errors: LuthierError, Interrupted."""
    with crew_of(run, lambda text: board.event("note", text=text)) as crew:
        work = Work(run, run.recipe, board, crew=crew)
        if crew is not None:
            crew.gather(order_of(run, work.data_digest), done=run.stage_values("train", work.trained))
        _execute(work, job)


def _execute(work: Work, job: Job | None) -> None:
    run, board = work.run, work.board
    if job is not None and job.kind == "train":
        _stage(work, "train", "train", work.trained, lambda: _train(work))
        return
    result = _baseline_and_training(work)
    proved = digest_of(work.judged, work.trained, result.selected_checkpoint)
    if job is not None and job.kind == "evaluate":
        with board.stage("prove"):
            _judge_extra(work, job)
        return
    if job is not None and job.export is not None:
        with board.stage("ship"):
            _ship(work, digest_of(proved, work.digest("export")), job.export)
    else:
        _stage(work, "prove", "comparison", proved, lambda: _prove(work, proved))
        if job is not None:
            return
        if (export := work.recipe.export) is not None:
            shipped = digest_of(proved, work.digest("export"))
            _stage(work, "ship", "artifacts", shipped, lambda: _ship(work, shipped, export))
    with board.stage("report"):
        from luthier.runs.reporting import make_report

        make_report(run)


def _stage(work: Work, name: Stage, file: str, inputs: str, do: Any) -> None:
    if work.run.stage_values(file, inputs) is not None:
        work.board.skip(name)
        return
    with work.board.stage(name):
        do()


def _baseline_and_training(work: Work) -> TrainResult:
    if work.tests:
        _stage(work, "baseline", "baseline", work.judged, lambda: _baseline(work))
    _stage(work, "train", "train", work.trained, lambda: _train(work))
    result = work.run.stage("train", TrainResult, work.trained)
    assert result is not None
    return result


def judge_base(work: Work, stage: Stage, tests: Mapping[str, Sequence[Any]]) -> dict[str, EvalResult]:
    """Every test split judged with the untouched model, or with the floor that stands in for it."""
    return work.task.judge_base(
        work.task.splits or work.data.splits,
        tests,
        told=partial(work.board.progress, stage),
        cache_dir=room("answers"),
    )


def judge_tuned(work: Work, stage: Stage, tests: Mapping[str, Sequence[Any]]) -> dict[str, EvalResult]:
    """Every test split judged with the trained model."""
    return work.task.judge_tuned(
        work.run.path, tests, told=partial(work.board.progress, stage), cache_dir=room("answers")
    )


def _save_results(work: Work, name: str, inputs: str, results: dict[str, EvalResult]) -> None:
    work.run.save_stage(name, inputs, {k: v.model_dump(mode="json") for k, v in results.items()})


def _baseline(work: Work) -> None:
    _save_results(work, "baseline", work.judged, judge_base(work, "baseline", work.tests))
    # Nothing that costs no training has a likelihood for two answers.
    if spec_of(work.recipe.task).rows == "chats" and not tunes_preferences(work.recipe):
        from luthier.runs.floors import judge_floors
        from luthier.tasks.chat import ChatTask

        task = work.task
        assert isinstance(task, ChatTask)
        floors = judge_floors(work, task.base_generator)
        work.run.save_stage("floors", work.judged, [floor.model_dump(mode="json") for floor in floors])
    if probed(work):
        probe_base(work)


def _train(work: Work) -> None:
    recipe, run = work.recipe, work.run
    config = recipe.model_dump(mode="json", exclude={"sources"})
    with open_trackers(
        recipe.training.trackers,
        run=run.id,
        folder=run.path,
        config=config,
        say=lambda text: work.board.event("note", text=text),
    ) as trackers:
        listener = Recorder(run, work.board, trackers)
        if recipe.training.devices > 1:
            if "task" in work.__dict__:
                work.task.free()  # the processes need its room
            result = train_together(
                run, work.trained, recipe.training.devices, on_metrics=listener, crew=work.crew
            )
        else:
            result = work.task.fit(
                work.data.splits,
                run.path,
                on_metrics=listener,
                control=run.asked,
                recipe_digest=work.trained,
            )
    run.save_stage("train", work.trained, result)
    keep_measurement(run, result)


def _prove(work: Work, inputs: str) -> None:
    if not work.tests:
        work.run.save_stage("comparison", inputs, [])
        return
    baseline = load_results(work.run, "baseline", work.judged)
    tuned = judge_tuned(work, "prove", work.tests)
    _save_results(work, "tuned", inputs, tuned)
    comparisons = [compare(baseline[name], tuned[name]) for name in baseline]
    if floors := load_floor_results(work.run, work.judged):
        from luthier.runs.floors import compare_floors

        beaten = compare_floors(floors, tuned)
        work.run.save_stage("floor_comparisons", inputs, [f.model_dump(mode="json") for f in beaten])
    if probed(work):
        probe_tuned(work, inputs)
    work.run.save_stage("comparison", inputs, [c.model_dump(mode="json") for c in comparisons])


def _judge_extra(work: Work, job: Job) -> None:
    """Judge base and tuned model on rows that the recipe does not name."""
    rows = read_tests({job.name: job.data}, work.recipe)
    if (corpus := read_corpus(job.name, job.data, work.recipe)) is not None:
        splits = work.data.splits
        work.task.splits = replace(splits, retrieval={**splits.retrieval, job.name: corpus})
    baseline = judge_base(work, "prove", rows)[job.name]
    tuned = judge_tuned(work, "prove", rows)[job.name]
    work.run.save_stage(
        f"evaluations/{job.name}",
        "",
        {
            "baseline": baseline.model_dump(mode="json"),
            "tuned": tuned.model_dump(mode="json"),
            "comparison": compare(baseline, tuned).model_dump(mode="json"),
        },
    )


def _ship(work: Work, inputs: str, export: ExportChoice) -> None:
    from luthier.runs.shipping import ship

    made = ship(work, export)
    kept = [a for a in load_artifacts(work.run) if a.kind not in {m.kind for m in made}]
    work.run.save_stage("artifacts", inputs, [a.model_dump(mode="json") for a in (*kept, *made)])
