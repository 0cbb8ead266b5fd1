"""``luthier train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from luthier.cli.console import err, print_json
from luthier.errors import UsageError

if TYPE_CHECKING:
    from luthier.runs.directory import RunDirectory
    from luthier.runs.prepare import Prepared
    from luthier.schema.run import Origin


def train(
    recipe: Path | None = None,
    /,
    *overrides: Annotated[str, Parameter(allow_leading_hyphen=True)],
    resume: str | None = None,
    clone: str | None = None,
    extend: str | None = None,
    branch: str | None = None,
    init_from: str | None = None,
    gpus: int | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    detach: Annotated[bool, Parameter(negative="")] = False,
    queue: Annotated[bool, Parameter(negative="")] = False,
    offline: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Tune a model by a recipe: baseline, training, proof, export and report.

    Parameters
    ----------
    recipe
        A recipe.yaml.
    overrides
        Settings that win over the recipe's: training.epochs=2 method.rank=32 ~key.
    resume
        Go on with this run from its last finished stage and checkpoint (id, beginning of one, or latest).
    clone
        Begin a new run with this run's recipe, and the settings that are given.
    extend
        Go on with this finished run, in a new one, for longer: --extend RUN training.epochs=5.
    branch
        Begin a new run from a checkpoint, RUN@STEP (or @last, @best), with other settings.
    init_from
        Start from the weights of this adapter: a folder in PEFT's format, or a run that shipped one.
    gpus
        Train on so many GPUs of this machine together (on a machine without: processes); the same as
        training.devices=N.
    dry_run
        Derive every value, predict memory and time, and stop before anything is loaded.
    detach
        Start the run and leave it to itself.
    queue
        Let the run wait until the machine is free, and leave it to itself; the order is shown by
        `luthier queue` and in the studio.
    offline
        Fetch nothing: the model must be on disk.
    json
        Print one JSON object to stdout when the run is over.
    """
    from luthier.cli import story
    from luthier.cli.attend import attend, run_json
    from luthier.runs.directory import find_run
    from luthier.runs.process import start_worker

    if gpus is not None:
        overrides = (*overrides, f"training.devices={gpus}")
    words, recipe = _settings(recipe, overrides, any((resume, clone, extend, branch)))
    if sum(name is not None for name in (resume, clone, extend, branch, recipe)) != 1:
        raise UsageError(
            "name one thing to train: a recipe, or one of --resume, --clone, --extend and --branch",
            hint="luthier train recipe.yaml, or luthier train --resume RUN",
        )
    if init_from is not None and recipe is None:
        raise UsageError("--init-from goes with a recipe", hint="luthier train recipe.yaml --init-from RUN")
    run: RunDirectory
    if resume is not None:
        if words:
            raise UsageError(
                "--resume takes the run's own recipe",
                hint=f"drop the settings, or branch off with them: luthier train --branch {resume}@last ...",
            )
        run = find_run(resume)
        if queue:
            return _queued(run, as_json=json)
    else:
        prepared, origin = _prepared(recipe, words, clone, extend, branch, init_from, offline=offline)
        if dry_run:
            if json:
                print_json(
                    {
                        "recipe": prepared.recipe.model_dump(mode="json"),
                        "estimate": prepared.resolved.estimate.model_dump(mode="json"),
                        "origin": None if origin is None else origin.model_dump(mode="json"),
                    }
                )
            else:
                story.show_plan(prepared.recipe, prepared.resolved.estimate)
            return 0
        if not json:
            story.heading(None, "Plan", "every derived value with its source")
            if origin is not None:
                story.show_origin(origin)
            story.show_plan(prepared.recipe, prepared.resolved.estimate)
        run = _created(prepared, origin)
        if queue:
            return _queued(run, as_json=json)
    err().print(f"run {run.id}", style="dim")
    if detach:
        start_worker(run)
        err().print(f"left to itself; see `luthier runs show {run.id}`")
        return 0
    code = attend(run, quiet=json)
    if json:
        run_json(run)
    return code


def _queued(run: RunDirectory, *, as_json: bool) -> int:
    """Let a run wait its turn."""
    from luthier.runs.queue import Queue
    from luthier.schema.queue import JobRequest

    queue = Queue(run.path.parent)
    if run.status.state == "queued":
        job = queue.add(run)
    else:
        job = queue.submit(JobRequest(kind="resume", run=run.id))
    if as_json:
        print_json({"run": run.id, "job": job.id, "state": job.state})
    else:
        err().print(f"run {run.id} waits its turn; see `luthier queue`")
    return 0


def _settings(
    recipe: Path | None, overrides: tuple[str, ...], from_run: bool
) -> tuple[tuple[str, ...], Path | None]:
    """With ``--clone RUN k=v`` the first word is a setting, not a recipe."""
    if recipe is not None and from_run and ("=" in str(recipe) or str(recipe).startswith("~")):
        return (str(recipe), *overrides), None
    return overrides, recipe


def _prepared(  # noqa: PLR0917 (private, called once)
    recipe: Path | None,
    words: tuple[str, ...],
    clone: str | None,
    extend: str | None,
    branch: str | None,
    init_from: str | None,
    *,
    offline: bool,
) -> tuple[Prepared, Origin | None]:
    """The recipe ready to run, and where it comes from if it is not from a file."""
    from luthier.runs import lineage
    from luthier.runs.prepare import prepare
    from luthier.schema.load import load_recipe

    def say(text: str) -> None:
        err().print(text)

    if clone is not None:
        return lineage.clone(clone, words, say=say, offline=offline)
    if extend is not None:
        return lineage.extend(extend, words, say=say, offline=offline)
    if branch is not None:
        return lineage.branch(branch, words, say=say, offline=offline)
    assert recipe is not None
    loaded, origin = load_recipe(recipe, words), None
    if init_from is not None:
        loaded, origin = lineage.warm_start(loaded, init_from)
    return prepare(loaded, say=say, offline=offline), origin


def _created(prepared: Prepared, origin: Origin | None) -> RunDirectory:
    from luthier.runs.lineage import start_from
    from luthier.runs.prepare import create_run

    return create_run(prepared) if origin is None else start_from(prepared, origin)
