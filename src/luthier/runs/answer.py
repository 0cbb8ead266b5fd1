"""Ask a tuned or saved model something, in a process of its own: torch never loads here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.catalog.purposes import Answers, spec_of
from luthier.errors import UsageError
from luthier.runs.child import Child
from luthier.runs.directory import find_run
from luthier.runs.stages import load_artifacts


def ask(
    folder: Path, kind: str, inputs: Sequence[Any], *, settings: dict[str, Any] | None = None
) -> list[Any]:
    """Answers to inputs in their order. kind: what ``luthier.tasks.answer`` knows.

    Errors: the model's own, passed on; ToolchainError where the process dies without a word.
    """
    with Child(["luthier.tasks.answer", kind, str(folder)], about=folder) as child:
        return child.ask({"inputs": list(inputs), "settings": settings or {}}, "answers")


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


def ask_about(
    name: str,
    questions: Sequence[str],
    images: Sequence[Path],
    *,
    max_new_tokens: int,
    system: str | None = None,
) -> list[dict[str, Any]]:
    """Answers of a run or a saved model to questions about images, each about all of them.

    Errors: UsageError for an image that is not there, Unsupported for a model that does not see.
    """
    for image in images:
        if not image.is_file():
            raise UsageError(
                f"there is no image {image}", hint="name a PNG, JPEG, WebP, GIF, BMP or TIFF file"
            )
    folder = model_folder(name, "chat")
    most = None
    if not (Path(name).expanduser() / "config.json").is_file():
        vision = find_run(name).recipe.vision
        most = None if vision is None else vision.max_pixels
    files = [str(image.resolve()) for image in images]
    settings = {"max_new_tokens": max_new_tokens, "system": system, "max_pixels": most}
    return ask(folder, "see", [{"text": text, "images": files} for text in questions], settings=settings)
