"""``luthier sweep``: search settings, compare models on one budget, score by number of rows."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from luthier.cli.sweep_words import line, list_all, show, show_forecast, table_of
from luthier.errors import Interrupted, Unsupported, UsageError

if TYPE_CHECKING:
    from types import FrameType

    from luthier.runs.prepare import Prepared
    from luthier.runs.sweep.folder import SweepFolder
    from luthier.schema.recipe import Recipe
    from luthier.schema.sweep import SweepChoice, SweepResult

Flag = Annotated[bool, Parameter(negative="")]


def sweep(
    recipe: Path | None = None,
    /,
    *settings: Annotated[str, Parameter(allow_leading_hyphen=True)],
    trials: int | None = None,
    models: str | None = None,
    learning_curve: str | None = None,
    jobs: int = 1,
    pruner: Literal["median", "hyperband", "none"] = "median",
    seed: int = 17,
    name: str | None = None,
    price_per_hour: float | None = None,
    resume: str | None = None,
    no_prove: Flag = False,
    dry_run: Flag = False,
    offline: Flag = False,
    on: str = "local",
    list_: Annotated[bool, Parameter(name="--list", negative="")] = False,
    json: Flag = False,
) -> int:
    """Search settings by validation loss; the winner alone is judged on the held-out rows.

    luthier sweep recipe.yaml training.learning_rate=1e-5..1e-3:log method.rank=8,16,64 --trials 12

    Every trial is a run of its own, listed by `luthier runs`. Ctrl-C stops and keeps all work.

    Parameters
    ----------
    recipe
        A recipe.yaml.
    settings
        Ranges and lists that are searched (low..high, low..high:log, low..high:STEP, a,b,c), and plain
        settings that all runs share (training.epochs=2).
    trials
        How many settings are tried; 12 when not given. With --resume: how many in all.
    models
        Tune several models on the same rows and rank them on the same held-out rows: names with commas,
        or top3 for the advisor's first three.
    learning_curve
        Tune on so many rows each, for example 100,300,1000: score by number of rows.
    jobs
        Runs at once; one waits while memory is short.
    pruner
        What ends a trial early: behind the median of the others, Hyperband's brackets, or nothing.
    seed
        Seed of the search; the runs keep the recipe's.
    name
        What the sweep is called; the recipe's name and the time when not given.
    price_per_hour
        US dollars an hour of this machine, for the cost of each run (models, learning curve).
    resume
        Go on with a sweep that was stopped or killed, or with more --trials (name, beginning, latest).
    no_prove
        Leave the winner unjudged: no held-out row is answered.
    dry_run
        Show the space, the number of trials and the predicted time and memory, and stop.
    offline
        Fetch nothing; top3 then means models whose weights come without the Hub.
    on
        Where runs go: local.
    list_
        List the sweeps that there are.
    json
        Print one JSON object.
    """
    from luthier.cli.console import err
    from luthier.runs.sweep.folder import SweepFolder, find_sweep

    _check_place(on)
    if list_:
        return list_all(json=json)
    if (recipe is None) == (resume is None):
        raise UsageError(
            "name one thing: a recipe, or --resume SWEEP",
            hint="luthier sweep recipe.yaml training.learning_rate=1e-5..1e-3:log --trials 12",
        )
    if resume is not None:
        if settings or models or learning_curve:
            raise UsageError("--resume takes the sweep's own space", hint="begin a new sweep for another one")
        folder = find_sweep(resume)
        if trials is not None:
            folder.extend(trials)
        return _work(folder, prove=not no_prove, offline=offline, json=json)
    assert recipe is not None
    choice, shared = _choice(
        recipe,
        settings,
        trials=trials,
        models=models,
        learning_curve=learning_curve,
        jobs=jobs,
        pruner=pruner,
        seed=seed,
        name=name,
        price=price_per_hour,
        offline=offline,
    )
    if dry_run:
        return _foretell(choice, shared, offline=offline, json=json)
    _check(choice, shared, offline=offline)
    folder = SweepFolder.create(choice, shared)
    err().print(f"sweep {choice.name}", style="dim")
    return _work(folder, prove=not no_prove, offline=offline, json=json)


def _check_place(on: str) -> None:
    if on == "ray":
        raise Unsupported(
            "trials on other machines are not done: a trial is a run directory that this machine follows, "
            "checks against its own memory and ends early, and Ray's workers share neither disk nor memory "
            "with it",
            hint="run several at once here with --jobs, or one sweep on each machine over its part of the "
            "space and `luthier compare` over the winners",
        )
    if on != "local":
        raise UsageError(f"--on {on} is not known", hint="use local")


def _choice(
    recipe: Path,
    settings: tuple[str, ...],
    *,
    trials: int | None,
    models: str | None,
    learning_curve: str | None,
    jobs: int,
    pruner: Literal["median", "hyperband", "none"],
    seed: int,
    name: str | None,
    price: float | None,
    offline: bool,
) -> tuple[SweepChoice, Recipe]:
    """What is asked for, and the recipe that all runs share."""
    from luthier.runs.sweep.arms import models_of, sizes_of
    from luthier.runs.sweep.folder import name_for
    from luthier.runs.sweep.space import EXAMPLE, edges, split_words
    from luthier.runs.sweep.study import demand_optuna
    from luthier.schema.load import load_recipe
    from luthier.schema.sweep import SweepChoice

    if jobs < 1 or (trials is not None and trials < 1):
        raise UsageError("at least one trial, one at a time", hint="--trials 12 --jobs 1")
    space, fixed = split_words(settings)
    if space and (models or learning_curve):
        raise UsageError(
            f"{space[0].key} is a range or list, and models and learning curves keep their settings",
            hint="search first, then compare with the settings that were found",
        )
    shared = load_recipe(recipe, fixed)
    for ends in edges(space):  # a wrong name or value is told before anything is read
        load_recipe(recipe, (*fixed, *(f"{key}={value}" for key, value in ends.items())))
    kind: Literal["search", "models", "learning-curve"] = (
        "learning-curve" if learning_curve else "models" if models else "search"
    )
    if kind == "search":
        if not space:
            raise UsageError("nothing is searched", hint=f"give ranges or lists: {EXAMPLE}")
        demand_optuna()
    choice = SweepChoice(
        name=name or name_for(shared, kind),
        kind=kind,
        space=space,
        trials=trials or 12,
        pruner=pruner,
        models=models_of(models, shared, offline=offline) if models else (),
        sizes=sizes_of(learning_curve) if learning_curve else (),
        jobs=jobs,
        seed=seed,
        price_per_hour=price,
    )
    return choice, shared


def _prepared(shared: Recipe, *, offline: bool) -> Prepared:
    from luthier.cli.console import err
    from luthier.runs.prepare import prepare

    def say(text: str) -> None:
        err().print(text, style="dim", soft_wrap=True)

    return prepare(shared, say=say, offline=offline)


def _check(choice: SweepChoice, shared: Recipe, *, offline: bool) -> None:
    """What is wrong with all runs alike is told before a folder is made."""
    from luthier.runs.sweep.arms import check_arms
    from luthier.runs.sweep.search import check_search

    base = _prepared(shared, offline=offline)
    if choice.kind == "search":
        check_search(base, choice)
    else:
        check_arms(base, choice)


# --- doing it -----------------------------------------------------------------------------------


def _work(folder: SweepFolder, *, prove: bool, offline: bool, json: bool) -> int:
    """All runs, the winner's proof, the page. Returns the exit code."""
    from luthier.cli.console import err
    from luthier.runs.sweep.arms import run_arms, shared
    from luthier.runs.sweep.page import write_page
    from luthier.runs.sweep.search import prove_winner, search, with_importance

    choice = folder.choice
    with folder.held():
        base = _prepared(folder.recipe(), offline=offline)
        with _interruptible() as stopped, _watched() as told:

            def say(text: str) -> None:
                err().print(text, style="dim", soft_wrap=True)

            if choice.kind == "search":
                result = search(folder, base, say=say, told=told, stopping=lambda: bool(stopped))
            else:
                result = run_arms(
                    folder, shared(base, choice), say=say, told=told, stopping=lambda: bool(stopped)
                )
        if choice.kind == "search":
            result = with_importance(folder, result)
        if stopped:
            write_page(result)
            show(result, json=json)
            err().print(f"stopped, all work is kept; go on with: luthier sweep --resume {choice.name}")
            return Interrupted.exit_code
        if choice.kind == "search" and result.winner is not None and prove:
            result = prove_winner(folder, result, follow=lambda run: _attend(run, quiet=json))
        write_page(result)
    show(result, json=json)
    return 0 if result.winner is not None else 1


def _attend(run: object, *, quiet: bool) -> int:
    from luthier.cli import story
    from luthier.cli.attend import attend
    from luthier.runs.directory import RunDirectory

    assert isinstance(run, RunDirectory)
    if not quiet:
        story.heading(None, "Winner", f"{run.id}: the only trial that answers the held-out rows")
    return attend(run, quiet=quiet)


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """A list that Ctrl-C makes true; a second one leaves the runs to stop by themselves."""
    from luthier.cli.console import err

    pressed: list[int] = []

    def on_interrupt(_number: int, _frame: FrameType | None) -> None:
        pressed.append(1)
        if len(pressed) > 1:
            raise KeyboardInterrupt
        err().print("[yellow]stopping the runs after their step and saving; Ctrl-C again to leave now[/]")

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


class _Watch:
    """Shows trials as they come and go: a live table on a terminal, a line for each end elsewhere."""

    def __init__(self, live: object | None) -> None:
        self._live = live
        self._said: dict[int, str] = {}

    def __call__(self, result: SweepResult) -> None:
        from rich.live import Live

        from luthier.cli.console import err

        for trial in result.trials:
            if trial.state != "running" and self._said.get(trial.number) != trial.state:
                self._said[trial.number] = trial.state
                if self._live is None:
                    err().print(f"  {line(trial, result)}", soft_wrap=True, highlight=False, markup=False)
            elif trial.state == "running" and trial.run and trial.number not in self._said:
                self._said[trial.number] = "running"
                if self._live is None:
                    err().print(f"  {line(trial, result)}", soft_wrap=True, highlight=False, markup=False)
        if isinstance(self._live, Live):
            self._live.update(table_of(result))


@contextmanager
def _watched() -> Iterator[_Watch]:
    from luthier.cli.console import err, interactive

    if not interactive():
        yield _Watch(None)
        return
    from rich.live import Live

    with Live(console=err(), refresh_per_second=4, transient=True) as live:
        yield _Watch(live)


def _foretell(choice: SweepChoice, shared: Recipe, *, offline: bool, json: bool) -> int:
    """What would be done, and what it would take."""
    from luthier.cli.console import out, print_json
    from luthier.runs.sweep.arms import arms_of, check_arms
    from luthier.runs.sweep.arms import shared as common
    from luthier.runs.sweep.search import check_search, forecast
    from luthier.schema.load import recipe_from

    base = _prepared(shared, offline=offline)
    values = shared.model_dump(mode="json", exclude_none=True)
    if choice.kind == "search":
        check_search(base, choice)
        sets = None
    else:
        check_arms(base, choice)
        sets = [(*common(base, choice), *arm.overrides) for arm in arms_of(choice, shared)]
    found = forecast(choice, lambda words: recipe_from(values, words), sets)
    if json:
        print_json(
            {
                "choice": choice.model_dump(mode="json"),
                "trials": found.trials,
                "settings_in_all": found.size,
                "seconds": found.seconds,
                "memory": found.memory,
                "infeasible": found.infeasible,
            }
        )
        return 0
    show_forecast(choice, found)
    out().print("  nothing was started", style="dim")
    return 0
