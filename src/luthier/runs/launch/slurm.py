"""SLURM: a batch script, handed to sbatch. The cluster's machines see this one's disk.

sbatch and srun: https://slurm.schedmd.com/sbatch.html, srun.html; states: squeue.html, sacct.html.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from luthier.errors import ToolchainError, UsageError
from luthier.runs.launch.tools import ask
from luthier.schema.launch import JobState, LaunchChoice, LaunchedJob

WARNING = 300
"""Seconds before the end of its time at which a job is told, saves and asks to be started again."""
TIME = re.compile(r"\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+(:\d\d){0,2}")
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,+-]*")
STATES: dict[str, JobState] = {
    "PENDING": "pending", "CONFIGURING": "pending", "REQUEUE_FED": "pending", "REQUEUE_HOLD": "pending",
    "REQUEUED": "preempted", "PREEMPTED": "preempted", "SUSPENDED": "preempted", "STOPPED": "preempted",
    "RUNNING": "running", "COMPLETING": "running", "STAGE_OUT": "running", "SIGNALING": "running",
    "RESIZING": "running", "COMPLETED": "done", "CANCELLED": "cancelled", "REVOKED": "cancelled",
    "FAILED": "failed", "TIMEOUT": "failed", "NODE_FAIL": "failed", "OUT_OF_MEMORY": "failed",
    "BOOT_FAIL": "failed", "DEADLINE": "failed", "SPECIAL_EXIT": "failed",
}  # fmt: skip


def write(choice: LaunchChoice, *, recipe: Path, runs: Path, log: Path, home: Path) -> str:
    """The batch script. home: where it works. Errors: UsageError for words that SLURM would misread."""
    for flag, value in (("partition", choice.partition), ("account", choice.account), ("qos", choice.qos)):
        if value is not None and WORD.fullmatch(value) is None:
            raise UsageError(f"--{flag} {value!r}: not a name of SLURM's", hint="letters, digits, _ . , + -")
    if choice.time is not None and TIME.fullmatch(choice.time) is None:
        raise UsageError(f"--time {choice.time}: not a time", hint="2:00:00, 1-12:00:00, or minutes")
    train = [sys.executable, "-m", "luthier", "train", str(recipe), "--run", choice.name]
    if choice.gpus:
        train += ["--gpus", str(choice.gpus)]
    many = ""
    if choice.nodes > 1:
        train += ["--nodes", str(choice.nodes)]
        many = ' --node-rank "$SLURM_PROCID" --rendezvous "$LUTHIER_FIRST"'
    return "\n".join(
        [
            "#!/bin/bash",
            *_header(choice),
            "",
            f"export LUTHIER_RUNS={shlex.quote(str(runs))}",
            f"exec >>{shlex.quote(str(log))} 2>&1",
            'echo "luthier: start ${SLURM_RESTART_COUNT:-0} of job $SLURM_JOB_ID on $SLURM_JOB_NODELIST"',
            f"cd {shlex.quote(str(home))} || exit 2",
            *choice.setup,
            'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            'export LUTHIER_FIRST="$first:$((20000 + SLURM_JOB_ID % 10000))"',
            "",
            f"# {WARNING} s before its time is over the job is told: the run saves, and the job waits again.",
            "again=",
            'warned() { again=1; scancel --signal=TERM "$SLURM_JOB_ID"; }',
            "trap warned USR1",
            f"srun --ntasks={choice.nodes} --ntasks-per-node=1 --wait=0 --kill-on-bad-exit=0 \\",
            f"  bash -c 'exec \"$@\"{many}' luthier {shlex.join(train)} &",
            "step=$!",
            'wait "$step"; code=$?',
            'while kill -0 "$step" 2>/dev/null; do wait "$step"; code=$?; done',
            'if [ -n "$again" ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
            'exit "$code"',
            "",
        ]
    )


def _header(choice: LaunchChoice) -> list[str]:
    options = [
        ("job-name", choice.name),
        ("nodes", choice.nodes),
        ("ntasks-per-node", 1),
        ("gpus-per-node", _gpus(choice) if choice.gpus else None),
        ("cpus-per-task", choice.cpus),
        ("mem", f"{choice.memory_gb}G" if choice.memory_gb else None),
        ("time", choice.time),
        ("partition", choice.partition),
        ("account", choice.account),
        ("qos", choice.qos),
        ("signal", f"B:USR1@{WARNING}"),
        ("open-mode", "append"),
    ]
    return [f"#SBATCH --{name}={value}" for name, value in options if value is not None] + [
        "#SBATCH --requeue"
    ]


def _gpus(choice: LaunchChoice) -> str:
    """Type and number: SLURM's types are one word, and the cluster's own (sinfo --format=%G)."""
    kind = choice.gpu_type
    return f"{kind}:{choice.gpus}" if kind is not None and WORD.fullmatch(kind) else str(choice.gpus)


def check(text: str) -> None:
    """Refuse a script that bash cannot read. Errors: UsageError (lines of --setup are the user's)."""
    if (bash := shutil.which("bash")) is None:
        return
    done = subprocess.run([bash, "-n"], input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[0] if done.stderr.strip() else "bash -n refuses it"
        raise UsageError(f"the script cannot be read: {said}", hint="look at the lines of --setup")


def submit(job: LaunchedJob) -> str:
    """Hand the script to sbatch; the job's number. Errors: ToolchainError."""
    said = ask(["sbatch", "--parsable", job.file]).strip()
    number = said.splitlines()[-1].partition(";")[0].strip() if said else ""
    if not number.isdecimal():
        raise ToolchainError(f"sbatch named no job: {said or 'it said nothing'}", hint="see squeue --me")
    return number


def state(job: LaunchedJob) -> tuple[JobState, str]:
    """State now, and in SLURM's words. Errors: ToolchainError."""
    assert job.id is not None
    try:
        said = ask(["squeue", "--noheader", f"--jobs={job.id}", "--format=%T|%r"]).strip()
    except ToolchainError as error:
        if "nvalid job id" not in error.message:
            raise
        said = ""  # it has left the queue
    if said:
        word, _, reason = said.splitlines()[0].partition("|")
        return STATES.get(word.strip(), "unknown"), word + (
            f" ({reason})" if reason not in ("", "None") else ""
        )
    told = ask(
        ["sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={job.id}", "--format=State,ExitCode"]
    ).strip()
    if not told:
        return "unknown", "neither squeue nor sacct knows it"
    word, _, code = told.splitlines()[-1].partition("|")
    found = STATES.get((word.split() or [""])[0], "unknown")
    # A job that is out of the queue does not come back by itself.
    return ("failed" if found == "preempted" else found), f"{word}, exit code {code}"


def bring(job: LaunchedJob, target: Path) -> Path:
    """The run's folder, which this machine sees. Errors: ToolchainError where it does not."""
    found = Path(job.runs) / job.choice.name
    if not (found / "status.json").is_file():
        raise ToolchainError(
            f"the run's folder is not to be seen here: {found}",
            hint="copy it from the cluster: "
            f"rsync -a HOST:{shlex.quote(str(found))} {shlex.quote(str(target))}",
        )
    return found


def cancel_words(job: LaunchedJob) -> str:
    """How to end the job."""
    return f"scancel {job.id}"
