"""The clusters' own programs: called, answered or refused in words."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

from luthier.errors import ToolchainError

INSTALL = {
    "sbatch": "SLURM's programs are on the cluster's login machine: run this there, with the checkout or "
    "package that the cluster sees",
    "squeue": "SLURM's programs are on the cluster's login machine",
    "scontrol": "SLURM's programs are on the cluster's login machine",
    "sky": "install SkyPilot with the clouds that you use: pip install 'skypilot[aws]', then sky check",
    "kubectl": "install kubectl and give it a cluster: kubectl config current-context",
    "rsync": "install rsync",
    "aws": "install the AWS command line, or copy the bucket by hand",
    "gcloud": "install the Google Cloud command line, or copy the bucket by hand",
}
ANSWER = 300.0
"""Seconds that a question may take; starting machines is not a question."""


def demand(program: str) -> str:
    """Path of a program. Errors: ToolchainError where it is not installed."""
    found = shutil.which(program)
    if found is None:
        raise ToolchainError(
            f"{program} is not on this machine", hint=f"{INSTALL[program]}; the job file can be used as it is"
        )
    return found


def ask(
    words: Sequence[str], *, stdin: str | None = None, patience: float | None = ANSWER, most: int = 3
) -> str:
    """What a program answers on standard output.

    Errors: ToolchainError with its last words where it fails, or does not answer in time.
    """
    demand(words[0])
    try:
        done = subprocess.run(
            list(words), input=stdin, stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True, text=True, errors="replace", timeout=patience, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ToolchainError(
            f"{words[0]} did not answer within {patience:.0f} s", hint="try it by hand: " + " ".join(words)
        ) from None
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        raise ToolchainError(
            f"{words[0]}: " + " | ".join(said[-most:]), hint="try it by hand: " + shown(words)
        )
    return done.stdout


def shown(words: Sequence[str]) -> str:
    """A command as it can be typed."""
    import shlex

    return shlex.join(words)
