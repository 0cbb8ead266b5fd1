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
    from luthier.schema.nodes import Place
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
    nodes: int | None = None,
    node_rank: int | None = None,
    rendezvous: str | None = None,
    run_id: Annotated[str | None, Parameter(name=("--run", "--run-name"))] = None,
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
        training.devices=N. With --nodes: of each machine.
    nodes
        Train on so many machines together: the same command is started on each, with its own --node-rank
        (torchrun may start it too). The first machine keeps the run; the others end with the training.
    node_rank
        Which of the machines this is, from 0.
    rendezvous
        HOST:PORT of the first machine, where all of them meet; the network must be your own.
    run_id
        Name of the run. One that has begun under this name goes on, one that is done is left as it is: a job
        that a cluster starts again says the same words.
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
    from luthier.runs.nodes import place_of, superfluous, torchrun_devices
    from luthier.runs.nodes import settings as many
    from luthier.runs.process import current_state, start_worker

    if superfluous():
        return 0  # torchrun's other processes of this machine: the first one starts what is needed
    gpus = gpus if gpus is not None else torchrun_devices()
    place = place_of(nodes, node_rank, rendezvous, gpus)
    settings: tuple[str, ...] = () if gpus is None else (f"training.devices={gpus}",)
    if place is not None:
        settings = many(place)
        if queue or detach:
            raise UsageError(
                "a run on several machines is attended on each", hint="leave --queue and --detach"
            )
        if dry_run and not place.first:
            return 0
    words, recipe = _settings(recipe, overrides, any((resume, clone, extend, branch)))
    if sum(name is not None for name in (resume, clone, extend, branch, recipe)) != 1:
        raise UsageError(
            "name one thing to train: a recipe, or one of --resume, --clone, --extend and --branch",
            hint="luthier train recipe.yaml, or luthier train --resume RUN",
        )
    if init_from is not None and recipe is None:
        raise UsageError("--init-from goes with a recipe", hint="luthier train recipe.yaml --init-from RUN")
    if run_id is not None and recipe is None:
        raise UsageError("--run goes with a recipe", hint="luthier train recipe.yaml --run NAME")
    if place is not None and not place.first:
        return _take_part(place, recipe, (*words, *settings), run_id, offline=offline, as_json=json)
    begun = None
    if run_id is not None and recipe is not None:
        begun = _begun(run_id, recipe, (*words, *settings))
    if begun is not None and not dry_run:
        if current_state(begun) == "done":
            err().print(f"run {begun.id} is done")
            if json:
                run_json(begun)
            return 0
        resume, recipe, words, settings = str(begun.path), None, (), ()
    if resume is None or place is None:
        words = (*words, *settings)
    run: RunDirectory
    if resume is not None:
        if words:
            raise UsageError(
                "--resume takes the run's own recipe",
                hint=f"drop the settings, or branch off with them: luthier train --branch {resume}@last ...",
            )
        run = find_run(resume)
        if dry_run:
            raise UsageError(
                "--dry-run plans what has not begun", hint=f"luthier runs show {run.id} has this run's plan"
            )
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
        run = _created(prepared, origin, run_id)
        if run_id is not None and recipe is not None:
            run.save_stage("asked", "", {"recipe": _asked(recipe, words)})
        if queue:
            return _queued(run, as_json=json)
    err().print(f"run {run.id}", style="dim")
    if detach:
        start_worker(run)
        err().print(f"left to itself; see `luthier runs show {run.id}`")
        return 0
    code = attend(run, quiet=json, place=place)
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


def _created(prepared: Prepared, origin: Origin | None, run_id: str | None) -> RunDirectory:
    from luthier.runs.lineage import start_from
    from luthier.runs.prepare import create_run

    if origin is None:
        return create_run(prepared, run_id=run_id)
    return start_from(prepared, origin, run_id=run_id)


def _asked(recipe: Path, words: tuple[str, ...]) -> str:
    """Digest of a recipe as it was asked for, before anything is derived; where it is trained aside."""
    from luthier.runs.directory import digest_of
    from luthier.schema.load import load_recipe

    loaded = load_recipe(recipe, words)
    training = loaded.training.model_copy(update={"devices": 1, "nodes": 1})
    return digest_of(loaded.model_copy(update={"training": training}).model_dump_json())


def _begun(run_id: str, recipe: Path, words: tuple[str, ...]) -> RunDirectory | None:
    """The run of that name, if it has begun. Errors: UsageError where it was begun with another recipe."""
    import re

    from luthier.runs.directory import RunDirectory, runs_root

    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}", run_id) is None:
        raise UsageError(
            f"--run {run_id}: not a name", hint="use letters, digits, dots, dashes and underscores"
        )
    found = RunDirectory(runs_root() / run_id)
    if not (found.path / "status.json").is_file():
        return None
    asked = (found.stage_values("asked") or {}).get("recipe")
    if asked is not None and asked != _asked(recipe, words):
        raise UsageError(
            f"{run_id} was begun with another recipe, or other settings",
            hint=f"go on with it as it was: luthier train --resume {run_id}; or give another --run",
        )
    return found


def _take_part(
    place: Place,
    recipe: Path | None,
    words: tuple[str, ...],
    run_id: str | None,
    *,
    offline: bool,
    as_json: bool,
) -> int:
    """Train in the first machine's run."""
    from luthier.runs.directory import RunDirectory, runs_root
    from luthier.runs.nodes import join

    trained = run_id is not None and RunDirectory(runs_root() / run_id).stage_values("train") is not None
    if not trained:
        join(place, recipe, words, say=lambda text: err().print(text, style="dim"), offline=offline)
    if as_json:
        print_json({"node": place.rank, "nodes": place.nodes, "state": "done"})
    return 0
