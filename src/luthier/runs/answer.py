"""Ask a tuned or saved model something, in a process of its own: torch never loads here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.catalog.purposes import Answers, spec_of
from luthier.errors import LuthierError, ToolchainError, UsageError
from luthier.runs.directory import find_run
from luthier.runs.process import torch_environment
from luthier.runs.stages import load_artifacts


class AnswerFailed(LuthierError):
    """What the answering process said went wrong; leaves with its exit code."""

    def __init__(self, message: str, hint: str | None, exit_code: int) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


def ask(
    folder: Path, kind: str, inputs: Sequence[Any], *, settings: dict[str, Any] | None = None
) -> list[Any]:
    """Answers to inputs in their order. kind: what ``luthier.tasks.answer`` knows.

    Errors: the model's own, passed on; ToolchainError where the process dies without a word.
    """
    done = subprocess.run(
        [sys.executable, "-m", "luthier.tasks.answer", kind, str(folder)],
        input=json.dumps({"inputs": list(inputs), "settings": settings or {}}),
        capture_output=True,
        text=True,
        check=False,
        env=torch_environment() | {"HF_HUB_OFFLINE": "1"},
    )
    try:
        found = json.loads(done.stdout)
    except json.JSONDecodeError:
        last = "\n".join(done.stderr.strip().splitlines()[-3:])
        raise ToolchainError(f"the model did not answer: {last or done.returncode}") from None
    if isinstance(found, dict):
        raise AnswerFailed(found["message"], found["hint"], found["exit_code"])
    answers: list[Any] = found
    return answers


def model_folder(name: str, answers: Answers) -> Path:
    """The saved model that a run or a folder holds.

    name: a folder with a saved model, or a run by id, beginning, path or ``latest``. Errors: UsageError
    where the run answers otherwise, or has no merged weights.
    """
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        return path.resolve()
    run = find_run(name)
    own = spec_of(run.recipe.task).answers
    if own != answers:
        raise UsageError(
            f"{run.id} was tuned for {run.recipe.task}: it does not {answers}",
            hint=f"luthier {own} {run.id}",
        )
    merged = run.path / "artifacts" / "merged"
    if not (merged / "config.json").is_file():
        state = "has no merged weights" if load_artifacts(run) else "has not exported anything yet"
        raise UsageError(f"{run.id} {state}", hint=f"luthier export {run.id} --merged")
    return merged
