"""LM Studio: its folder layout, and the settings that a model is loaded with.

Layout: lmstudio.ai/docs/app/basics/import-model. Settings stand in a file of the model's name below
``.internal/user-concrete-model-default-config``, which LM Studio writes itself when a person saves
defaults; its fields are those of lmstudio.ai/docs/app/modelyaml.
"""

from __future__ import annotations

import json
from pathlib import Path

from luthier.files import write_text
from luthier.schema.deployment import ContextPlan

PUBLISHER = "luthier"
DEFAULTS = Path(".internal") / "user-concrete-model-default-config"


def home() -> Path | None:
    """LM Studio's folder, where it was ever started; None otherwise."""
    pointer = Path.home() / ".lmstudio-home-pointer"
    if pointer.is_file():
        named = Path(pointer.read_text(encoding="utf-8").strip()).expanduser()
        if named.is_dir():
            return named
    usual = Path.home() / ".lmstudio"
    return usual if usual.is_dir() else None


def model_place(root: Path, name: str, file: str) -> Path:
    """Where a model's file belongs."""
    return root / "models" / PUBLISHER / name / file


def settings_place(root: Path, name: str, file: str) -> Path:
    """Where its settings belong."""
    return root / DEFAULTS / PUBLISHER / name / f"{file}.json"


def settings(plan: ContextPlan) -> str:
    """The settings file's text: context of all slots together, as LM Studio counts it."""
    fields = [
        {"key": "llm.load.contextLength", "value": plan.context * plan.slots},
        {"key": "llm.load.numParallelSessions", "value": plan.slots},
    ]
    return (
        json.dumps({"preset": "", "operation": {"fields": []}, "load": {"fields": fields}}, indent=2) + "\n"
    )


def write_layout(root: Path, name: str, file: Path, plan: ContextPlan) -> list[Path]:
    """Put a model and its settings below ``root``; a file on the same disk is linked, not copied."""
    place, config = model_place(root, name, file.name), settings_place(root, name, file.name)
    place.parent.mkdir(parents=True, exist_ok=True)
    link_or_copy(file, place)
    config.parent.mkdir(parents=True, exist_ok=True)
    write_text(config, settings(plan))  # without a byte-order mark: LM Studio ignores files with one
    return [place, config]


def link_or_copy(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the disk is another."""
    from luthier.files import replaced

    with replaced(target) as partial:
        partial.unlink()
        try:
            partial.hardlink_to(source)
        except OSError:
            import shutil

            shutil.copyfile(source, partial)
