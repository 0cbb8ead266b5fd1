"""Search settings: every trial trains as a run of its own, the winner alone meets the held-out rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from luthier.errors import DoesNotFit, UsageError
from luthier.runs.directory import RunDirectory
from luthier.runs.model import Say
from luthier.runs.prepare import Prepared
from luthier.runs.process import ACTIVE, current_state, raise_for_end
from luthier.runs.stages import load_comparisons, load_estimate
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
from luthier.runs.sweep.space import edges, size_of, words_of
from luthier.runs.sweep.study import RUNGS, Known, Study, open_study
from luthier.runs.upkeep import prunable, prune
from luthier.schema.recipe import Recipe
from luthier.schema.run import Job, State
from luthier.schema.sweep import SweepChoice, SweepResult, Trial

OWN = "the recipe's own settings"
ASKS_A_TRIAL = 4
"""A sampler that keeps asking for settings that are known is given up after so many asks a trial."""
Told = Callable[[SweepResult], None]


@dataclass(frozen=True)
class Forecast:
    """What a search will need, by settings at the ends of its space."""

    trials: int
    """No more than there are settings."""
    size: int | None
    seconds: tuple[float, float] | None
    """All trainings one after another, none ended early, by the fastest and the slowest; over the jobs."""
    memory: tuple[int, int] | None
    """Bytes that one run needs, least and most."""
    infeasible: tuple[str, ...]
    """Settings at the ends that cannot be trained here, with the reason."""


def check_search(base: Prepared, choice: SweepChoice) -> None:
    """Refuse a search that has nothing to choose by. Errors: UsageError."""
    if not choice.space:
        raise UsageError(
            "nothing is searched",
            hint="give ranges or lists: training.learning_rate=1e-5..1e-3:log method.rank=8,16,64",
        )
    if not len(base.data.splits.validation):
        raise UsageError(
            "there are no validation rows to choose settings by",
            hint="name data.validation, or set data.validation_share above 0",
        )


def forecast(
    choice: SweepChoice,
    recipe_of: Callable[[tuple[str, ...]], Recipe],
    sets: Sequence[tuple[str, ...]] | None = None,
) -> Forecast:
    """Predict memory and time without running anything.

    sets: overrides of every run, where they are known (models, learning curve); else the ends of the
    searched space stand for it.
    """
    size = size_of(choice.space) if sets is None else len(sets)
    trials = len(sets) if sets is not None else min(choice.trials, choice.trials if size is None else size)
    seconds, needs, wrong = [], [], []
    ends = edges(choice.space) if sets is None else []
    tried = list(sets) if sets is not None else [as_overrides(one) for one in ends]
    for place, overrides in enumerate(tried):
        try:
            found = prepare_quietly(recipe_of(overrides))
        except (DoesNotFit, UsageError) as error:
            name = words_of(ends[place]) if ends else " ".join(overrides)
            wrong.append(f"{name}: {first_line(error)}")
            continue
        needs.append(needed_by(found))
        if (said := found.resolved.estimate.seconds) is not None:
            seconds.append(said.expected)
    total = None
    if seconds and sets is not None:
        total = (sum(seconds) / choice.jobs, sum(seconds) / choice.jobs)
    elif seconds:
        total = (min(seconds) * trials / choice.jobs, max(seconds) * trials / choice.jobs)
    memory = (min(needs), max(needs)) if needs else None
    return Forecast(trials, size, total, memory, tuple(wrong))


def as_overrides(found: Mapping[str, str]) -> tuple[str, ...]:
    """Settings as words of a recipe's overrides."""
    return tuple(f"{key}={value}" for key, value in found.items())


def search(folder: SweepFolder, base: Prepared, *, say: Say, told: Told, stopping: Stopping) -> SweepResult:
    """Try settings until there have been enough trials. Trials at work are taken up where they stand.

    base: the recipe prepared with none of the searched settings changed. stopping: asked all the time;
    once true, runs at work save themselves and the search returns. Errors: UsageError, Unsupported
    without Optuna, and whatever makes every trial impossible.
    """
    choice = folder.choice
    check_search(base, choice)
    with open_study(folder.path, choice) as study:
        study.fill({a.key: _own(base, a.key) for a in choice.space}, OWN)
        return _Search(folder, choice, study, say, told, stopping).run()


def with_importance(folder: SweepFolder, result: SweepResult) -> SweepResult:
    """The result with what each setting mattered, by all trials that are done."""
    with open_study(folder.path, result.choice) as study:
        result = result.model_copy(update={"importance": study.importance()})
    folder.save(result)
    return result


def _own(base: Prepared, key: str) -> object:
    found: object = base.recipe
    for part in key.split("."):
        found = getattr(found, part, None)
    return found


@dataclass
class _Search:
    folder: SweepFolder
    choice: SweepChoice
    study: Study
    say: Say
    told: Told
    stopping: Stopping
    losses: dict[int, list[tuple[float, float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.crew = Crew(self.choice.jobs)
        self.waiting: tuple[Known, Prepared] | None = None
        self.changed = False
        self.base_recipe = self.folder.recipe()

    def run(self) -> SweepResult:
        """Trials until there are enough, or until somebody wants to stop."""
        for known in self.study.trials():
            if known.state == "running":
                self._take_up(known)
        self._tell()
        self.crew.follow(
            start_more=self._start_more,
            more=lambda: self.waiting is not None,
            fresh=self._losses,
            over=self._over,
            tell=self._tell_changes,
            stopping=self.stopping,
        )
        return self._tell()

    def _tell_changes(self) -> None:
        if self.changed:
            self._tell()

    # -- starting ----------------------------------------------------------------------------

    def _start_more(self) -> None:
        while self.crew.free and not self.stopping():
            if self.waiting is not None:
                known, prepared = self.waiting
                if not self.crew.has_room(needed_by(prepared)):
                    return
                self.waiting = None
                self._start(known, prepared)
                continue
            asked = self.study.trials()
            counted = [one for one in asked if "same_as" not in one.attrs]
            size = size_of(self.choice.space)
            most = min(self.choice.trials, size) if size is not None else self.choice.trials
            if len(counted) >= most or len(asked) >= most * ASKS_A_TRIAL:
                return
            self._begin(self.study.ask())

    def _begin(self, known: Known) -> None:
        """Start a trial, unless its settings are known or cannot be trained here."""
        if (twin := self._twin(known)) is not None:
            self._as(twin, known)
            return
        try:
            recipe = self.folder.recipe(as_overrides(known.settings))
            name = f"{self.choice.name}-{known.number:03d}"
            prepared = prepare_quietly(recipe.model_copy(update={"name": name}))
        except (DoesNotFit, UsageError) as error:
            if isinstance(error, DoesNotFit) and self.crew.active:
                # The others hold the memory: it is tried again when one of them is over.
                self.study.note(known.number, postponed=True)
                return
            self._infeasible(known.number, first_line(error))
            return
        if self.crew.has_room(needed_by(prepared)):
            self._start(known, prepared)
        else:
            self.waiting = (known, prepared)

    def _twin(self, known: Known) -> Known | None:
        """An ended trial with the same settings."""
        for one in self.study.trials():
            if one.number != known.number and one.settings == known.settings and one.state != "running":
                return one
        return None

    def _as(self, twin: Known, known: Known) -> None:
        """The same settings give the same: nothing is trained again."""
        self.study.note(known.number, same_as=twin.attrs.get("same_as", twin.number))
        for word in ("infeasible", "pruned", "failed"):
            if word in twin.attrs:
                self.study.note(known.number, **{word: twin.attrs[word]})
        if twin.state == "complete" and twin.value is not None:
            self.study.complete(known.number, twin.value)
        elif twin.state == "pruned":
            self.study.prune(known.number)
        else:
            self.study.fail(known.number)

    def _start(self, known: Known, prepared: Prepared) -> None:
        assert prepared.recipe.name is not None
        run = run_for(prepared, prepared.recipe.name, self.folder.path, self.base_recipe)
        self.study.note(known.number, run=run.id)
        self.crew.start(known.number, run, Job(kind="train"), reserved=needed_by(prepared))
        self.changed = True

    def _take_up(self, known: Known) -> None:
        """A trial that an earlier process began: followed if it runs, gone on with if it does not."""
        name = known.attrs.get("run")
        if name is None:
            self._begin(known)
            return
        if (run := run_named(name)) is None:
            self._fail(known.number, "its run has been removed")
            return
        estimate = load_estimate(run)
        reserved = 0 if estimate is None else round(estimate.process.high)
        if train_result(run) is not None and run.status.state == "done":
            working = Working(known.number, run, None, 0)
            working.read()
            self._over(working, "done")
            return
        if "pruned" in known.attrs and current_state(run) not in ACTIVE:
            self.study.prune(known.number)
            return
        self.crew.start(known.number, run, Job(kind="train"), reserved=reserved)

    # -- following ---------------------------------------------------------------------------

    def _losses(self, one: Working, fresh: list[tuple[float, float]]) -> None:
        for share, loss in fresh:
            self._loss(one, share, loss)

    def _loss(self, one: Working, share: float, loss: float) -> None:
        self.losses.setdefault(one.number, []).append((share, loss))
        self.changed = True
        if not math.isfinite(loss) or share >= 1:
            return
        if self.study.report(one.number, math.floor(share * RUNGS + 1e-9), loss):
            self.study.note(
                one.number,
                pruned=f"ended after {share:.0%} of its training: loss {loss:.4g} is behind the others'",
            )
            one.run.ask("stop")

    def _over(self, working: Working, state: State) -> None:
        number, known = working.number, self.study.known(working.number)
        self.changed = True
        self.losses[number] = list(working.losses)
        result = train_result(working.run)
        if state == "done" and result is not None:
            self._done(working.run, number, result.best_validation_loss)
        elif state == "stopped" and "pruned" in known.attrs:
            self.study.note(number, losses=working.losses)
            self.study.prune(number)
        elif state == "lost" and "restarted" not in known.attrs:
            self.study.note(number, restarted=True)
            self.crew.start(number, working.run, Job(kind="train"), reserved=working.reserved)
            self.say(f"the worker of {working.run.id} is gone without a word: gone on with once")
        elif state == "failed" and working.run.status.failure is not None:
            failure = working.run.status.failure
            if failure.kind == "DoesNotFit":
                self._infeasible(number, failure.message)
            else:
                self._fail(number, failure.message)
        else:
            self._fail(number, why_failed(working.run, state))
        if not self.crew.active:
            self._postponed()

    def _postponed(self) -> None:
        """Trials that found no memory beside the others are tried alone."""
        for known in self.study.trials():
            if known.state == "running" and "run" not in known.attrs and self.waiting is None:
                self._begin(known)
                return

    def _done(self, run: RunDirectory, number: int, loss: float | None) -> None:
        self.study.note(number, losses=self.losses[number])
        if loss is None or not math.isfinite(loss):
            self._fail(number, "no validation loss came to a number")
            return
        self.study.complete(number, loss)
        for spare in prunable([run], selected_only=True):
            prune(spare)

    def _infeasible(self, number: int, reason: str) -> None:
        self.study.note(number, infeasible=reason)
        self.study.prune(number)

    def _fail(self, number: int, reason: str) -> None:
        self.study.note(number, failed=reason)
        self.study.fail(number)

    # -- telling -----------------------------------------------------------------------------

    def _tell(self) -> SweepResult:
        self.changed = False
        before = self.folder.result
        trials = tuple(self._trial(known) for known in self.study.trials())
        ended = [t for t in trials if t.state == "done" and t.loss is not None and t.same_as is None]
        best = min(ended, key=lambda t: (t.loss, t.number), default=None)
        result = SweepResult(
            choice=self.choice,
            path=str(self.folder.path),
            trials=trials,
            best=None if best is None else best.number,
            importance={} if before is None else before.importance,
            proved=proved_by(trials, () if before is None else before.proved),
            notes=() if before is None else before.notes,
        )
        self.folder.save(result)
        self.told(result)
        return result

    def _trial(self, known: Known) -> Trial:
        attrs = known.attrs
        name = attrs.get("run")
        run = None if name is None else run_named(name)
        estimate = None if run is None else load_estimate(run)
        measured = None if run is None else train_result(run)
        reason = attrs.get("infeasible") or attrs.get("failed") or ""
        state = {"complete": "done", "fail": "failed"}.get(known.state, known.state)
        if "infeasible" in attrs:
            state = "infeasible"
        elif known.state == "pruned":
            reason = attrs.get("pruned", "")
        kept = attrs.get("losses") or self.losses.get(known.number, [])
        return Trial.model_validate(
            {
                "number": known.number,
                "name": words_of(known.settings),
                "settings": known.settings,
                "state": state,
                "run": name,
                "why": attrs.get("why", ""),
                "reason": reason,
                "loss": known.value if known.value is not None else (kept[-1][1] if kept else None),
                "losses": tuple(map(tuple, kept)),
                "same_as": attrs.get("same_as"),
                "seconds": spent(run) if measured is None else measured.seconds,
                "peak_memory": None if measured is None else measured.peak_memory,
                "predicted_seconds": None
                if estimate is None or estimate.seconds is None
                else estimate.seconds.expected,
                "predicted_memory": None if estimate is None else round(estimate.process.high),
            }
        )


def spent(run: RunDirectory | None) -> float | None:
    """Seconds in the training stage of a run that did not come to its end."""
    return None if run is None else run.status.seconds.get("train")


def proved_by(trials: Sequence[Trial], known: tuple[str, ...]) -> tuple[str, ...]:
    """Runs that have met the held-out rows: those known of, and those that were proved by hand."""
    runs = [run for trial in trials if trial.run is not None and (run := run_named(trial.run)) is not None]
    return tuple(dict.fromkeys([*known, *(run.id for run in runs if (run.path / "tuned.json").exists())]))


def prove_winner(
    folder: SweepFolder, result: SweepResult, *, follow: Callable[[RunDirectory], int]
) -> SweepResult:
    """Give the winner all stages that its recipe names: the only trial that answers held-out rows.

    follow: attends the run until it is over and returns its exit code. A second winner, of a sweep that
    was gone on with, looks at the same rows again, and the result says so.
    """
    winner = result.winner
    if winner is None or winner.run is None:
        return result
    run = run_named(winner.run)
    if run is None:
        raise UsageError(
            f"the winner's run {winner.run} is no longer there", hint="bring it back, or sweep anew"
        )
    notes = result.notes
    if earlier := [name for name in result.proved if name != run.id]:
        note = (
            f"the held-out rows were used by {', '.join(earlier)} before {run.id}: its verdict is that of a "
            "second look"
        )
        notes = (*notes, note) if note not in notes else notes
    proved = result.proved if run.id in result.proved else (*result.proved, run.id)
    # Written before the first held-out row is answered: a kill must not make the rows look untouched.
    result = result.model_copy(update={"proved": proved, "notes": notes})
    folder.save(result)
    if not load_comparisons(run) or run.status.state != "done":
        follow(run)
        raise_for_end(run)
    return result
