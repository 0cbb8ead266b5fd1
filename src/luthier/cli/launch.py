"""``luthier launch``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from luthier.cli.console import duration, err, out, print_json
from luthier.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from luthier.runs.launch.jobs import Written
    from luthier.schema.launch import Cost, LaunchChoice, LaunchedJob

Flag = Annotated[bool, Parameter(negative="")]


def launch(
    recipe: Path | None = None,
    /,
    *overrides: Annotated[str, Parameter(allow_leading_hyphen=True)],
    on: Annotated[str | None, Parameter(name="--on")] = None,
    nodes: int = 1,
    gpus: int = 1,
    gpu_type: str | None = None,
    name: str | None = None,
    time: str | None = None,
    price_per_gpu: float | None = None,
    hours: float | None = None,
    setup: tuple[str, ...] = (),
    cpus: int | None = None,
    memory_gb: int | None = None,
    partition: str | None = None,
    account: str | None = None,
    qos: str | None = None,
    spot: Flag = False,
    infra: str | None = None,
    bucket: str | None = None,
    image: str | None = None,
    namespace: str | None = None,
    volume: str | None = None,
    selector: tuple[str, ...] = (),
    secret: str | None = None,
    retries: int = 10,
    out_file: Annotated[Path | None, Parameter(name="--out")] = None,
    submit: Flag = False,
    detach: Flag = False,
    yes: Annotated[bool, Parameter(name=("--yes", "-y"), negative="")] = False,
    dry_run: Flag = False,
    follow: str | None = None,
    again: str | None = None,
    bring: str | None = None,
    list_: Annotated[bool, Parameter(name="--list", negative="")] = False,
    json: Flag = False,
) -> int:
    """Write a job file that trains a recipe on a cluster, and hand it over if asked.

    Parameters
    ----------
    recipe
        A recipe.yaml.
    overrides
        Settings that win over the recipe's: training.epochs=2 method.rank=32.
    on
        slurm, skypilot or kubernetes.
    nodes
        Machines that train together.
    gpus
        GPUs of each machine; 0 for its CPU.
    gpu_type
        Kind of GPU (h100, a100-80gb ...): predicts memory and hours, has a dated list price, and is asked of
        SLURM and SkyPilot.
    name
        Of the job and its run; made of the recipe's if not given.
    time
        SLURM: limit of one turn, such as 12:00:00. A run that is not done by then saves and waits again.
    price_per_gpu
        US dollars for one GPU and hour; a dated list price of the GPU's kind if not given.
    hours
        Hours to count with, in place of the prediction.
    setup
        A line of shell before the training, on every machine (may be repeated): source .venv/bin/activate.
    cpus
        Cores of each machine.
    memory_gb
        Memory of each machine in GB.
    partition
        SLURM: the partition.
    account
        SLURM: whom it is booked on.
    qos
        SLURM: quality of service.
    spot
        SkyPilot: machines that may be taken away.
    infra
        SkyPilot: where to look, such as aws/us-east-1.
    bucket
        SkyPilot: s3://NAME or gs://NAME that keeps the run; the job is recovered when its machines are taken.
    image
        Kubernetes: image of the pods.
    namespace
        Kubernetes: where the job lives.
    volume
        Kubernetes: the PersistentVolumeClaim that keeps the run.
    selector
        Kubernetes: LABEL=VALUE of the machines that will do (may be repeated).
    secret
        Kubernetes: a secret whose keys become environment variables, such as HF_TOKEN.
    retries
        Kubernetes, SkyPilot with a bucket: how often a job that fails is started again.
    out_file
        The job file; NAME.sbatch, NAME.sky.yaml or NAME.k8s.yaml here if not given.
    submit
        Hand it to sbatch, sky or kubectl, follow it, and bring the run's folder back.
    detach
        With --submit: do not follow it.
    yes
        Submit without asking.
    dry_run
        Show the job file and its cost, and write nothing.
    follow
        Follow a job that was submitted before (its name, the cluster's number, or latest).
    again
        Submit a job once more: its run goes on where it stood.
    bring
        Bring the run's folder of a job here.
    list_
        Show all jobs and their last known state.
    json
        Print one JSON object.
    """
    if sum((recipe is not None, follow is not None, again is not None, bring is not None, list_)) != 1:
        raise UsageError(
            "name one thing: a recipe, or --follow, --again, --bring or --list",
            hint="luthier launch recipe.yaml --on slurm --gpus 8",
        )
    if recipe is None:
        return _known(follow, again, bring, detach=detach, yes=yes, as_json=json)
    choice, written = _planned(
        recipe,
        overrides,
        {
            "on": on, "nodes": nodes, "gpus": gpus, "gpu_type": gpu_type, "time": time, "setup": setup,
            "cpus": cpus, "memory_gb": memory_gb, "partition": partition, "account": account, "qos": qos,
            "spot": spot, "infra": infra, "bucket": bucket, "image": image, "namespace": namespace,
            "volume": volume, "secret": secret, "retries": retries,
        },
        name=name,
        selector=selector,
        price=price_per_gpu,
        hours=hours,
        out_file=out_file,
    )  # fmt: skip
    job = written.job
    if not json:
        _show(choice, written, dry_run=dry_run)
    if dry_run:
        if json:
            print_json({**_values(job), "notes": written.cargo.notes, "text": written.text})
        return 0
    from luthier.runs.launch.jobs import PROGRAMS, keep
    from luthier.runs.launch.tools import demand

    if submit:
        demand(PROGRAMS[choice.on])
    job = keep(written)
    if submit and _agreed(choice.name, yes=yes):
        return _submitted(job, detach=detach, as_json=json)
    if json:
        print_json({**_values(job), "notes": written.cargo.notes})
    else:
        out().print(f"  submit it: luthier launch --again {choice.name}", soft_wrap=True)
    return 0


def _planned(
    recipe: Path,
    overrides: tuple[str, ...],
    values: dict[str, object],
    *,
    name: str | None,
    selector: tuple[str, ...],
    price: float | None,
    hours: float | None,
    out_file: Path | None,
) -> tuple[LaunchChoice, Written]:
    """The job that the words describe, with its cost."""
    from typing import get_args

    from pydantic import ValidationError

    from luthier.errors import did_you_mean
    from luthier.runs.launch.cargo import job_name, recipe_for
    from luthier.runs.launch.jobs import plan_job
    from luthier.runs.launch.price import cost_of
    from luthier.schema.launch import Cluster, LaunchChoice
    from luthier.schema.load import load_recipe

    known = get_args(Cluster)
    on = {"k8s": "kubernetes", "sky": "skypilot"}.get(str(values["on"]), values["on"])
    if on not in known:
        raise UsageError(
            "where to? --on is missing" if on is None else f"--on {on}: not a cluster that is known",
            hint=(None if on is None else did_you_mean(str(on), known)) or f"use one of {', '.join(known)}",
        )
    if any("=" not in pair for pair in selector):
        raise UsageError("--selector takes LABEL=VALUE", hint="--selector nvidia.com/gpu.product=NVIDIA-H100")
    loaded = load_recipe(recipe, overrides)
    given = {**values, "on": on, "name": job_name(name, loaded, recipe)}
    labels = dict(pair.split("=", 1) for pair in selector)
    try:
        choice = LaunchChoice.model_validate({**given, "selector": labels})
    except ValidationError as error:
        first = error.errors()[0]
        flag = str(first["loc"][0]).replace("_", "-")
        raise UsageError(f"--{flag} {first['input']}: {first['msg']}") from None
    asked = recipe_for(loaded, choice)
    cost = cost_of(choice, asked, price=price, hours=hours)
    return choice, plan_job(choice, asked, file=out_file, cost=cost)


def _known(
    follow: str | None, again: str | None, bring: str | None, *, detach: bool, yes: bool, as_json: bool
) -> int:
    """Something with a job that there is."""
    from luthier.runs.launch import jobs
    from luthier.schema.launch import ENDED

    if bring is not None:
        job = jobs.bring(jobs.find_job(bring))
        if as_json:
            print_json(_values(job))
        else:
            out().print(f"  run  {job.brought}", soft_wrap=True)
        return 0
    if follow is not None:
        job = jobs.find_job(follow)
        if job.id is None:
            raise UsageError(
                f"{job.choice.name} was never submitted", hint=f"luthier launch --again {job.choice.name}"
            )
        return _followed(job, as_json=as_json)
    if again is not None:
        job = jobs.find_job(again)
        if job.id is not None and job.state not in ENDED and jobs.look(job).state not in ENDED:
            raise UsageError(
                f"{job.choice.name} is {job.state}",
                hint=f"follow it: luthier launch --follow {job.choice.name}",
            )
        if not as_json:
            _show_cost(job.cost)
        if not _agreed(job.choice.name, yes=yes):
            return 0
        fresh = job.model_copy(update={"id": None, "state": "written", "ended": None, "words": ""})
        return _submitted(fresh, detach=detach, as_json=as_json)
    found = jobs.list_jobs()
    if as_json:
        print_json({"jobs": [_values(job) for job in found]})
    else:
        _show_list(found)
    return 0


def _submitted(job: LaunchedJob, *, detach: bool, as_json: bool) -> int:
    from luthier.runs.launch.jobs import submit

    err().print(f"handing {job.choice.name} to {job.choice.on}...", style="dim")
    job = submit(job)
    err().print(f"submitted as {job.id}")
    if not detach:
        return _followed(job, as_json=as_json)
    if as_json:
        print_json(_values(job))
    else:
        err().print(f"follow it: luthier launch --follow {job.choice.name}", soft_wrap=True)
    return 0


def _followed(job: LaunchedJob, *, as_json: bool) -> int:
    """Show a job until it is over and bring its run; Ctrl-C leaves it running."""
    import os

    from luthier.errors import LuthierError
    from luthier.runs.launch import jobs

    def say(words: str) -> None:
        err().print(f"{job.choice.name}  {words}", style="cyan", soft_wrap=True, markup=False)

    def line(words: str) -> None:
        err().print(words, style="dim", soft_wrap=True, markup=False)

    poll = float(os.environ.get("LUTHIER_POLL") or jobs.POLL)
    try:
        job = jobs.follow(job, say=say, line=line, poll=poll)
    except KeyboardInterrupt:
        raise Interrupted(
            f"{job.choice.name} runs on",
            hint=f"follow it again: luthier launch --follow {job.choice.name}; "
            f"end it: {jobs.cancel_words(job)}",
        ) from None
    missing: LuthierError | None = None
    try:
        job = jobs.bring(job)
    except LuthierError as error:
        if job.state == "done":
            raise
        missing = error
    if as_json:
        print_json(_values(job))
    elif job.brought is not None:
        out().print(f"  run  {job.brought}", soft_wrap=True)
    if job.choice.on == "skypilot" and not job.choice.bucket:
        err().print(f"the machines stay for half an hour; end them: {jobs.cancel_words(job)}")
    if job.state != "done":
        if missing is not None:
            err().print(f"nothing was brought: {missing.message}", style="dim", soft_wrap=True)
        raise jobs.ended_badly(job)
    return 0


def _agreed(name: str, *, yes: bool) -> bool:
    """Whether the user wants the job submitted. Errors: UsageError where nobody can be asked."""
    import sys

    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError("this asks first", hint=f"the file is written: luthier launch --again {name} --yes")
    return input(f"submit {name}? [y/N] ").strip().lower() in ("y", "yes")


def _values(job: LaunchedJob) -> dict[str, object]:
    """A job as plain values."""
    return {
        "job": job.choice.name,
        "on": job.choice.on,
        "id": job.id,
        "state": job.state,
        "words": job.words,
        "file": job.file,
        "run": job.brought,
        "nodes": job.choice.nodes,
        "gpus": job.choice.gpus,
        "cost": job.cost.model_dump(mode="json"),
    }


def _show(choice: LaunchChoice, written: Written, *, dry_run: bool) -> None:
    from rich.syntax import Syntax

    from luthier.cli.story import grid

    machines = f"{choice.nodes} x " if choice.nodes > 1 else ""
    kind = choice.gpu_type or "GPU"
    what = f"{machines}{choice.gpus} {kind}" if choice.gpus else f"{machines}CPU"
    out().print(
        grid(
            [
                ("Job", choice.name),
                ("Where", f"{choice.on}, {what}"),
                ("Run", f"{written.job.runs}/{choice.name}"),
                ("File", written.job.file),
            ]
        )
    )
    _show_cost(written.job.cost)
    for note in written.cargo.notes:
        out().print(f"  · {note}", style="dim", soft_wrap=True, markup=False)
    if dry_run:
        words = "bash" if choice.on == "slurm" else "yaml"
        out().print(Syntax(written.text, words, background_color="default", word_wrap=False))


def _show_cost(cost: Cost) -> None:
    if cost.hourly is not None:
        out().print(f"  ${cost.hourly:.2f} an hour (${cost.price:.2f} a GPU, {cost.source})", soft_wrap=True)
    if cost.hours is not None:
        expected, low, high = (
            duration(hours * 3600) for hours in (cost.hours.expected, cost.hours.low, cost.hours.high)
        )
        said = ""
        if (total := cost.total) is not None:
            said = f": ${total.expected:.2f} (${total.low:.2f} to ${total.high:.2f})"
        out().print(
            f"  training {expected} ({low} to {high}){said}; proof and export come on top", soft_wrap=True
        )
    if cost.unknown:
        out().print(f"  {cost.unknown}", style="yellow", soft_wrap=True, markup=False)


def _show_list(jobs: list[LaunchedJob]) -> None:
    from luthier.cli.story import columns

    if not jobs:
        out().print("No job was written here. luthier launch recipe.yaml --on slurm --gpus 8")
        return
    table = columns("job", "on", "id", "state", "")
    for job in jobs:
        table.add_row(job.choice.name, job.choice.on, job.id or "", job.state, job.words)
    out().print(table)
