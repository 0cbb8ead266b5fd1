"""A dry run: all that can be known before the model is loaded, by ``luthier train --dry-run`` itself."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.files import write_text
from luthier.runs.process import alive
from luthier.schema.load import recipe_from
from luthier.schema.recipe import Recipe
from luthier.schema.run import WorkerIdentity
from luthier.studio.problems import NotFound
from luthier.studio.services import children

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
        named = children.start(
            str(folder),
            "luthier",
            ["train", str(folder / "recipe.yaml"), "--dry-run", "--json"],
            out=folder / "out.json",
            err=folder / "told.txt",
            env={"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"},
        )
        write_text(folder / "child.json", named.model_dump_json())
    return find(home, name)


def find(home: Path, name: str) -> DryRun:
    """How a dry run stands. Errors: NotFound."""
    folder = home / "dry-runs" / name
    if not re.fullmatch(r"[0-9a-f]{16}", name) or not folder.is_dir():
        raise NotFound("there is no such dry run", hint="start it again")
    began = folder.stat().st_mtime
    if children.running(str(folder)):
        return DryRun(name, "running", time.time() - began, said=_last(folder))
    found = _answer(folder)
    if found is None:
        if _alive(folder):
            return DryRun(name, "running", time.time() - began, said=_last(folder))
        return DryRun(name, "lost", problem=_last(folder) or "it ended without a word", fix="start it again")
    if "error" in found:
        fault = found["error"] if isinstance(found["error"], dict) else {"message": str(found["error"])}
        where = f"{fault['where']}: " if fault.get("where") else ""
        return DryRun(name, "failed", problem=where + str(fault.get("message")), fix=fault.get("hint"))
    took = (folder / "out.json").stat().st_mtime - began
    return DryRun(name, "done", took, found.get("recipe"), found.get("estimate"))


def _answer(folder: Path) -> dict[str, Any] | None:
    for name in ("out.json", "told.txt"):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict):
            return found
    return None


def _last(folder: Path) -> str:
    try:
        lines = (folder / "told.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return " ".join(lines[-3:])[-600:]


def _alive(folder: Path) -> bool:
    """Whether a child that an earlier server started is at it."""
    try:
        return alive(WorkerIdentity.model_validate_json((folder / "child.json").read_bytes()))
    except (OSError, ValueError):
        return False


def _sweep(home: Path) -> None:
    folder = home / "dry-runs"
    kept = sorted(folder.glob("*"), key=lambda one: one.stat().st_mtime) if folder.is_dir() else []
    for one in kept[: max(0, len(kept) - KEEP)]:
        shutil.rmtree(one, ignore_errors=True)
