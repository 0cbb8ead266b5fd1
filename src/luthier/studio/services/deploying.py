"""Deployments from the page: ``luthier deploy`` as a job that outlives the studio."""

from __future__ import annotations

import hashlib
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from luthier.errors import UsageError
from luthier.runs.directory import RunDirectory
from luthier.schema.deployment import Target
from luthier.studio.problems import Conflict
from luthier.studio.services import commands
from luthier.studio.settings import StudioSettings

ABOUT: dict[Target, str] = {
    "ollama": "Ollama: added where it runs here",
    "lmstudio": "LM Studio: a folder that it lists",
    "llama.cpp": "llama.cpp: a script for its server",
    "vllm": "vLLM: merged weights, a script",
    "folder": "A folder for the first three",
    "bundle": "A folder with installers, to carry",
}
"""What each comes to, in the 34 letters that the narrow column of an export's page shows."""
_starting = threading.Lock()


@dataclass(frozen=True, slots=True)
class Deploying:
    """The last deployment of a run for one target that was asked for here."""

    target: Target
    command: commands.Command


def target_named(words: str) -> Target:
    """A runtime by name. Errors: UsageError."""
    for one in ABOUT:
        if one == words:
            return one
    raise UsageError(f"{words[:40]!r} is no target", hint=f"one of {', '.join(get_args(Target))}")


def start(settings: StudioSettings, run: RunDirectory, target: Target) -> Deploying:
    """Begin a deployment. Errors: Conflict where the same one is being made."""
    folder = _folder(settings, run, target)
    with _starting:
        if folder.is_dir() and commands.look(folder).state == "running":
            raise Conflict(f"{run.id} is being made ready for {target}", hint="wait for its end")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        env = {"LUTHIER_RUNS": str(settings.runs)}
        commands.begin(folder, ["deploy", str(run.path), "--to", target], env=env)
    return Deploying(target, commands.look(folder))


def of_run(settings: StudioSettings, run: RunDirectory) -> list[Deploying]:
    """What was asked for of a run, by target."""
    found = []
    for target in ABOUT:
        folder = _folder(settings, run, target)
        if folder.is_dir():
            found.append(Deploying(target, commands.look(folder)))
    return found


def _folder(settings: StudioSettings, run: RunDirectory, target: Target) -> Path:
    name = hashlib.sha256(f"{run.path}\n{target}".encode()).hexdigest()[:16]
    return settings.home / "deploying" / name
