"""Kubernetes: an Indexed Job with a headless Service, handed to kubectl. The run is kept on a volume.

Job and pod failure policy: https://kubernetes.io/docs/concepts/workloads/controllers/job/; pods that reach
each other by name: https://kubernetes.io/docs/tasks/job/job-with-pod-to-pod-communication/.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from luthier.errors import ToolchainError, UsageError
from luthier.runs.launch.cargo import Cargo, Carried
from luthier.runs.launch.tools import ask
from luthier.schema.launch import JobState, LaunchChoice, LaunchedJob
from luthier.schema.load import dump_values, recipe_values
from luthier.words import readable

PORT = 29400
MOUNT = "/luthier"
"""Where the volume is; the run is below it."""
JOB = "/luthier-job"
"""Where the recipe and small files are."""
RUNS = f"{MOUNT}/runs"
CARRIED = 700_000
"""Bytes of files that go along in a ConfigMap, which holds 1 MiB; larger ones must lie on the volume."""
FOREVER = (2, 3, 4)
"""Exit codes that come again however often a job is started: wrong settings, too little memory, bad rows."""
INTERRUPTED = 130
NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


def write(choice: LaunchChoice, cargo: Cargo) -> str:
    """ConfigMap, Service and Job as YAML. Errors: UsageError for what is missing or would be refused."""
    if choice.image is None:
        raise UsageError(
            "a pod needs an image",
            hint="--image with Python, CUDA and luthier[train,export]; --setup may install it",
        )
    if choice.volume is None:
        raise UsageError(
            "a pod forgets what it wrote: the run needs a volume",
            hint="--volume CLAIM, a PersistentVolumeClaim; one that several machines can mount "
            "(ReadWriteMany) for several",
        )
    for flag, value in (
        ("volume", choice.volume),
        ("namespace", choice.namespace),
        ("secret", choice.secret),
    ):
        if value is not None and NAME.fullmatch(value) is None:
            raise UsageError(
                f"--{flag} {value!r}: not a name of Kubernetes", hint="small letters, digits, - and ."
            )
    for value in choice.selector.values():
        if LABEL.fullmatch(value) is None:
            raise UsageError(
                f"--selector ...={value!r}: not a label's value", hint="letters, digits, - _ and ."
            )
    return dump_values(*(_documents(choice, cargo)))


def _documents(choice: LaunchChoice, cargo: Cargo) -> list[dict[str, Any]]:
    meta: dict[str, Any] = {"name": choice.name, "labels": {"app.kubernetes.io/managed-by": "luthier"}}
    if choice.namespace is not None:
        meta["namespace"] = choice.namespace
    files, items = {"recipe.yaml": cargo.recipe}, [{"key": "recipe.yaml", "path": "recipe.yaml"}]
    for one in small(cargo):
        key = one.there.replace("/", "--")
        files[key] = one.here.read_bytes().decode("utf-8")  # line ends as they are
        items.append({"key": key, "path": one.there})
    service = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,  # the machines meet before any is ready
        "selector": {"job-name": choice.name},
        "ports": [{"name": "rendezvous", "port": PORT}],
    }
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": files},
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": service},
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": _job(choice, items)},
    ]


def _job(choice: LaunchChoice, items: list[dict[str, str]]) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "completionMode": "Indexed",
        "completions": choice.nodes,
        "parallelism": choice.nodes,
        # All pods end when one does: each start that fails counts once for every machine.
        "backoffLimit": choice.retries * choice.nodes,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": "train", "operator": "In", "values": list(FOREVER)},
                },
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {
                    "action": "Ignore",
                    "onExitCodes": {"containerName": "train", "operator": "In", "values": [INTERRUPTED]},
                },
            ]
        },
        "template": {
            "metadata": {"labels": {"app.kubernetes.io/managed-by": "luthier"}},
            "spec": _pod(choice, items),
        },
    }
    return spec


def _pod(choice: LaunchChoice, items: list[dict[str, str]]) -> dict[str, Any]:
    amounts: dict[str, Any] = {}
    if choice.gpus:
        amounts["nvidia.com/gpu"] = choice.gpus
    if choice.cpus:
        amounts["cpu"] = str(choice.cpus)
    if choice.memory_gb:
        amounts["memory"] = f"{choice.memory_gb}Gi"
    container: dict[str, Any] = {
        "name": "train",
        "image": choice.image,
        **_command(choice),
        "env": [{"name": "LUTHIER_RUNS", "value": RUNS}, {"name": "PYTHONUNBUFFERED", "value": "1"}],
        "workingDir": MOUNT,
        "volumeMounts": [
            {"name": "job", "mountPath": JOB, "readOnly": True},
            {"name": "runs", "mountPath": MOUNT},
            {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108 (where NCCL's processes talk)
        ],
    }
    if amounts:
        container["resources"] = {"limits": amounts, "requests": amounts}
    if choice.secret is not None:
        container["envFrom"] = [{"secretRef": {"name": choice.secret}}]
    pod: dict[str, Any] = {
        "subdomain": choice.name,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 300,  # time to save
        "containers": [container],
        "volumes": [
            {"name": "job", "configMap": {"name": choice.name, "items": items}},
            {"name": "runs", "persistentVolumeClaim": {"claimName": choice.volume}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
        ],
    }
    if choice.selector:
        pod["nodeSelector"] = choice.selector
    return pod


def _command(choice: LaunchChoice) -> dict[str, list[str]]:
    train = ["luthier", "train", f"{JOB}/recipe.yaml", "--run", choice.name]
    if choice.gpus:
        train += ["--gpus", str(choice.gpus)]
    if choice.nodes > 1:
        # Kubernetes puts variables of the container in the place of $(NAME).
        train += ["--nodes", str(choice.nodes), "--node-rank", "$(JOB_COMPLETION_INDEX)"]
        train += ["--rendezvous", f"{choice.name}-0.{choice.name}:{PORT}"]
    if not choice.setup:
        return {"command": train}
    script = "\n".join(["set -e", *(line.replace("$(", "$$(") for line in choice.setup), 'exec "$@"', ""])
    return {"command": ["sh", "-c", script, "luthier", *train]}


def small(cargo: Cargo) -> list[Carried]:
    """The files that go along: all single texts, where together they are small enough."""
    texts = [one for one in cargo.files if one.here.is_file() and one.bytes <= CARRIED and _is_text(one.here)]
    return texts if sum(one.bytes for one in texts) + len(cargo.recipe) <= CARRIED else []


def _is_text(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


def place_on_volume(cargo: Cargo, name: str) -> Cargo:
    """The cargo with paths on the volume for what does not go along, and words for what must be there."""
    along = {one.there for one in small(cargo)}
    text, notes = cargo.recipe, list(cargo.notes)
    for one in cargo.files:
        if one.there not in along:
            there = f"{MOUNT}/{name}/{one.there}"
            text = text.replace(one.there, there)
            notes.append(f"must lie on the volume as {there}: {one.here} ({readable(one.bytes)})")
    return Cargo(text, cargo.files, notes)


def check(text: str) -> None:
    """Read the documents back: what must be there is there."""
    documents = [recipe_values(part) for part in re.split(r"(?m)^---$", text)]
    assert [one["kind"] for one in documents] == ["ConfigMap", "Service", "Job"], "three documents"
    assert all({"apiVersion", "kind", "metadata"} <= set(one) for one in documents), "head of each"
    config, service, job = documents
    assert recipe_values(config["data"]["recipe.yaml"])["training"]["nodes"] == job["spec"]["completions"]
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"] == job["metadata"]["name"], "names that meet"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}


def _kubectl(job: LaunchedJob, *words: str, stdin: str | None = None, patience: float | None = 120.0) -> str:
    space = ["--namespace", job.choice.namespace] if job.choice.namespace is not None else []
    return ask(["kubectl", *space, *words], stdin=stdin, patience=patience)


def submit(job: LaunchedJob) -> str:
    """Hand the documents to kubectl; the job's name. Errors: ToolchainError."""
    _kubectl(job, "apply", "--filename", job.file)
    return job.choice.name


def state(job: LaunchedJob) -> tuple[JobState, str]:
    """State now, and in Kubernetes' words. Errors: ToolchainError."""
    said = _kubectl(job, "get", "job", str(job.id), "--output", "json")
    try:
        status = json.loads(said).get("status", {})
    except ValueError:
        raise ToolchainError(f"kubectl answered with no JSON: {said[:200]!r}") from None
    for condition in status.get("conditions", []):
        if condition.get("status") == "True" and condition.get("type") in ("Complete", "Failed"):
            why = " ".join(filter(None, (condition.get("reason"), condition.get("message"))))
            word = condition["type"]
            return ("done" if word == "Complete" else "failed"), word + (f": {why}" if why else "")
    ready, active, failed = (int(status.get(name) or 0) for name in ("ready", "active", "failed"))
    words = f"{ready} of {job.choice.nodes} pods ready" + (f", {failed} failed before" if failed else "")
    if ready or status.get("succeeded"):
        return "running", words
    return ("preempted" if failed else "pending"), words + ("" if active else ", none active")


def log(job: LaunchedJob) -> list[str]:
    """The command that prints the first machine's log and goes on with it."""
    space = ["--namespace", job.choice.namespace] if job.choice.namespace is not None else []
    first = f"job-name={job.id},batch.kubernetes.io/job-completion-index=0"
    return ["kubectl", *space, "logs", "--follow", "--selector", first, "--tail", "-1"]


def bring(job: LaunchedJob, target: Path) -> Path:
    """Copy the run's folder here, through a pod that mounts the volume. Errors: ToolchainError."""
    name, reader = job.choice.name, f"{job.choice.name}-reader"
    meta: dict[str, Any] = {"name": reader}
    if job.choice.namespace is not None:
        meta["namespace"] = job.choice.namespace
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta,
        "spec": {
            "restartPolicy": "Never",
            "containers": [
                {
                    "name": "reader",
                    "image": job.choice.image,
                    "command": ["sleep", "3600"],
                    "volumeMounts": [{"name": "runs", "mountPath": MOUNT, "readOnly": True}],
                }
            ],
            "volumes": [{"name": "runs", "persistentVolumeClaim": {"claimName": job.choice.volume}}],
        },
    }
    target.mkdir(parents=True, exist_ok=True)
    _kubectl(job, "apply", "--filename", "-", stdin=dump_values(pod))
    try:
        _kubectl(job, "wait", "--for=condition=Ready", f"pod/{reader}", "--timeout=600s", patience=660)
        _kubectl(job, "cp", f"{reader}:{RUNS}/{name}", str(target / name), patience=None)
    finally:
        _kubectl(job, "delete", "pod", reader, "--wait=false", "--ignore-not-found")
    return target / name


def cancel_words(job: LaunchedJob) -> str:
    """How to end the job."""
    space = f"--namespace {job.choice.namespace} " if job.choice.namespace else ""
    return f"kubectl {space}delete --filename {job.file}"
