"""A dry run: all that can be known before the model is loaded, by ``luthier train --dry-run`` itself."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.files import write_text
from luthier.schema.load import recipe_from
from luthier.schema.recipe import Recipe
from luthier.studio.problems import NotFound
from luthier.studio.services import commands

KEEP = 20
"""Dry runs that are kept."""
_starting = threading.Lock()


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a dry run came to. ``state``: running, done, failed or lost."""

    id: str
    state: str
    seconds: float = 0.0
    recipe: dict[str, Any] | None = None
    """Resolved, with the real rows."""
    estimate: dict[str, Any] | None = None
    problem: str | None = None
    fix: str | None = None
    said: str = ""
    """The last of what it told on the way."""


def start(home: Path, values: dict[str, Any]) -> DryRun:
    """Start a dry run of a recipe; the one that is there, where it is the same. Errors: RecipeError."""
    recipe: Recipe = recipe_from(values)
    text = json.dumps(recipe.model_dump(mode="json", exclude_none=True), sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    folder = home / "dry-runs" / name
    with _starting:
        if folder.is_dir() and find(home, name).state == "running":
            return find(home, name)
        _sweep(home)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_text(folder / "recipe.yaml", text + "\n")  # JSON is YAML
        commands.begin(folder, ["train", str(folder / "recipe.yaml"), "--dry-run"])
    return find(home, name)


def find(home: Path, name: str) -> DryRun:
    """How a dry run stands. Errors: NotFound."""
    folder = home / "dry-runs" / name
    if not re.fullmatch(r"[0-9a-f]{16}", name) or not folder.is_dir():
        raise NotFound("there is no such dry run", hint="start it again")
    found = commands.look(folder)
    answer = found.answer or {}
    return DryRun(
        name,
        found.state,
        found.seconds,
        answer.get("recipe"),
        answer.get("estimate"),
        found.problem,
        found.fix,
        found.said,
    )


def _sweep(home: Path) -> None:
    folder = home / "dry-runs"
    kept = sorted(folder.glob("*"), key=lambda one: one.stat().st_mtime) if folder.is_dir() else []
    for one in kept[: max(0, len(kept) - KEEP)]:
        shutil.rmtree(one, ignore_errors=True)
