"""SkyPilot: a task, handed to sky. Machines are rented; recipe and files go along.

Task: https://docs.skypilot.co/en/latest/reference/yaml-spec.html; variables of the machines:
running-jobs/environment-variables.html; ``sky queue -o json``: reference/cli.html.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from luthier.catalog.index import gpu
from luthier.errors import ToolchainError, UsageError
from luthier.runs.launch.cargo import Cargo
from luthier.runs.launch.tools import ask
from luthier.schema.launch import JobState, LaunchChoice, LaunchedJob
from luthier.schema.load import dump_values, recipe_values
from luthier.version import __version__

HOME = "~/luthier"
"""Folder of the job on every machine."""
RUNS = f"{HOME}/runs"
PORT = 29400
BUCKET = re.compile(r"(s3|gs)://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
SETUP = (f"python3 -m pip install --quiet 'luthier[train,export]=={__version__}'",)
STATES: dict[str, JobState] = {
    "INIT": "pending", "PENDING": "pending", "SETTING_UP": "pending", "SUBMITTED": "pending",
    "STARTING": "pending", "RUNNING": "running", "WINDING_DOWN": "running", "RECOVERING": "preempted",
    "SUCCEEDED": "done", "CANCELLING": "cancelled", "CANCELLED": "cancelled", "FAILED": "failed",
    "FAILED_DRIVER": "failed", "FAILED_SETUP": "failed", "FAILED_PRECHECKS": "failed",
    "FAILED_NO_RESOURCE": "failed", "FAILED_CONTROLLER": "failed",
}  # fmt: skip


def write(choice: LaunchChoice, cargo: Cargo, *, recipe: Path) -> str:
    """The task as YAML. recipe: the job's recipe, here. Errors: UsageError for a bucket that is none."""
    if choice.bucket is not None and BUCKET.fullmatch(choice.bucket) is None:
        raise UsageError(
            f"--bucket {choice.bucket}: not a bucket", hint="write s3://NAME or gs://NAME, of an own bucket"
        )
    resources: dict[str, object] = {}
    if choice.gpus:
        resources["accelerators"] = f"{_gpu_name(choice)}:{choice.gpus}"
    if choice.cpus:
        resources["cpus"] = f"{choice.cpus}+"
    if choice.memory_gb:
        resources["memory"] = f"{choice.memory_gb}+"
    if choice.infra:
        resources["infra"] = choice.infra
    resources["use_spot"] = choice.spot
    if choice.bucket is not None:
        resources["job_recovery"] = {"max_restarts_on_errors": choice.retries}
    else:
        resources["autostop"] = {"idle_minutes": 30}
    mounts: dict[str, object] = {f"{HOME}/recipe.yaml": str(recipe)}
    mounts |= {f"{HOME}/{one.there}": str(one.here) for one in cargo.files}
    if choice.bucket is not None:
        mounts[RUNS] = {"source": choice.bucket, "mode": "MOUNT_CACHED"}
    setup = "\n".join(choice.setup or SETUP)
    return dump_values(
        {
            "name": choice.name,
            "num_nodes": choice.nodes,
            "resources": resources,
            "file_mounts": mounts,
            "setup": f"set -e\n{setup}\n",
            "run": _run(choice),
        }
    )


def _run(choice: LaunchChoice) -> str:
    train = ["luthier", "train", "recipe.yaml", "--run", choice.name]
    if choice.gpus:
        train += ["--gpus", str(choice.gpus)]
    many = ""
    if choice.nodes > 1:
        train += ["--nodes", str(choice.nodes)]
        many = f' --node-rank "$SKYPILOT_NODE_RANK" --rendezvous "$first:{PORT}"'
    return "\n".join(
        [
            "set -eu",
            'export LUTHIER_RUNS="$HOME/luthier/runs"',
            'cd "$HOME/luthier"',
            'first=$(printf "%s\\n" "$SKYPILOT_NODE_IPS" | head -n 1)',
            f"exec {shlex.join(train)}{many}",
            "",
        ]
    )


def _gpu_name(choice: LaunchChoice) -> str:
    """SkyPilot's name of a GPU: its own spelling of what the catalogue calls it. Errors: UsageError."""
    if choice.gpu_type is None:
        raise UsageError("SkyPilot looks for machines by their GPU", hint="give --gpu-type, for example h100")
    spec = gpu(choice.gpu_type)
    known = {
        "a100-80gb": "A100-80GB", "a100-40gb": "A100", "h100-80gb": "H100", "h200": "H200", "b200": "B200",
        "l4": "L4", "l40s": "L40S", "t4": "T4", "a10": "A10", "v100-16gb": "V100", "v100-32gb": "V100-32GB",
        "rtx-4090": "RTX4090", "rtx-3090": "RTX3090", "rtx-a6000": "RTXA6000", "rtx-6000-ada": "RTX6000-Ada",
    }  # fmt: skip
    name = choice.gpu_type if spec is None else known.get(spec.id, choice.gpu_type)
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", name) is None:
        raise UsageError(f"--gpu-type {name}: not a name of SkyPilot's", hint="see sky gpus list")
    return name


def check(text: str) -> None:
    """Read the task back: what must be there is there."""
    values = recipe_values(text)
    assert set(values) == {"name", "num_nodes", "resources", "file_mounts", "setup", "run"}, "a task's keys"
    for source in values["file_mounts"].values():
        assert isinstance(source, dict) or Path(source).exists(), f"a mount without a source: {source}"


def submit(job: LaunchedJob) -> str:
    """Hand the task to sky; the cluster's name and the job's number. Errors: ToolchainError."""
    name = job.choice.name
    if job.choice.bucket is not None:
        ask(["sky", "jobs", "launch", "--yes", "--detach-run", "--name", name, job.file], patience=None)
    else:
        ask(["sky", "launch", "--yes", "--detach-run", "--cluster", name, job.file], patience=None)
    found = _record(job)
    if found is None:
        raise ToolchainError(f"sky knows no job {name}", hint="see sky queue, sky jobs queue")
    return str(found["job_id"])


def _record(job: LaunchedJob) -> dict[str, object] | None:
    """The job's line in sky's queue."""
    name = job.choice.name
    managed = job.choice.bucket is not None
    words = (
        ["sky", "jobs", "queue", "--output", "json"]
        if managed
        else ["sky", "queue", name, "--output", "json"]
    )
    said = ask(words)
    start = min((place for place in (said.find("["), said.find("{")) if place >= 0), default=-1)
    try:
        found = json.loads(said[start:]) if start >= 0 else []
    except ValueError:
        raise ToolchainError(
            f"sky answered with no JSON: {said[:200]!r}", hint="SkyPilot 0.12 or newer"
        ) from None
    rows = found.get(name, []) if isinstance(found, dict) else found
    mine = [row for row in rows if row.get("job_name" if managed else "job_id") in (name, row.get("job_id"))]
    mine = [row for row in mine if job.id is None or str(row.get("job_id")) == job.id]
    return max(mine, key=lambda row: int(row["job_id"]), default=None)


def state(job: LaunchedJob) -> tuple[JobState, str]:
    """State now, and in SkyPilot's words. Errors: ToolchainError."""
    found = _record(job)
    if found is None:
        return "unknown", "sky does not list it"
    word = str(found.get("status"))
    count = found.get("recovery_count") or 0
    why = found.get("failure_reason")
    said = word + (f", recovered {count} times" if count else "") + (f": {why}" if why else "")
    return STATES.get(word, "unknown"), said


def log(job: LaunchedJob) -> list[str]:
    """The command that prints the log and goes on with it."""
    assert job.id is not None
    return ["sky", "jobs", "logs", job.id] if job.choice.bucket else ["sky", "logs", job.choice.name, job.id]


def bring(job: LaunchedJob, target: Path) -> Path:
    """Copy the run's folder here, from the machine or the bucket. Errors: ToolchainError."""
    name, bucket = job.choice.name, job.choice.bucket
    here = target / name
    target.mkdir(parents=True, exist_ok=True)
    if bucket is None:
        # sky writes the machine's name into ~/.ssh/config.
        ask(["rsync", "--archive", "--compress", f"{name}:luthier/runs/{name}/", f"{here}/"], patience=None)
    elif bucket.startswith("s3://"):
        ask(["aws", "s3", "sync", "--no-progress", f"{bucket}/{name}", str(here)], patience=None)
    else:
        here.mkdir(parents=True, exist_ok=True)
        ask(["gcloud", "storage", "rsync", "--recursive", f"{bucket}/{name}", str(here)], patience=None)
    return here


def cancel_words(job: LaunchedJob) -> str:
    """How to end the job, and what it rents."""
    return f"sky jobs cancel {job.id}" if job.choice.bucket else f"sky down {job.choice.name}"
