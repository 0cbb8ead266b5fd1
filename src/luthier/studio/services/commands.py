"""A command of ours as a detached child: its answer is kept in a folder, whoever asks for it later."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from luthier.files import write_text
from luthier.runs.process import alive
from luthier.schema.run import WorkerIdentity
from luthier.studio.services import children

State = Literal["running", "done", "failed", "lost"]


@dataclass(frozen=True, slots=True)
class Command:
    """How a command stands."""

    state: State
    seconds: float = 0.0
    answer: dict[str, Any] | None = None
    """done: what it printed."""
    problem: str | None = None
    fix: str | None = None
    said: str = ""
    """running: the last of what it told on the way."""


def begin(folder: Path, words: Sequence[str], *, env: dict[str, str] | None = None) -> None:
    """Start ``luthier WORDS --json``; the folder is there and empty."""
    plain = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"}
    named = children.start(
        str(folder),
        "luthier",
        [*words, "--json"],
        out=folder / "out.json",
        err=folder / "told.txt",
        env={**plain, **(env or {})},
    )
    write_text(folder / "child.json", named.model_dump_json())


def look(folder: Path) -> Command:
    """How the command of a folder stands."""
    began = folder.stat().st_mtime
    if children.running(str(folder)):
        return Command("running", time.time() - began, said=_last(folder))
    found = _answer(folder)
    if found is None:
        if _alive(folder):
            return Command("running", time.time() - began, said=_last(folder))
        return Command("lost", problem=_last(folder) or "it ended without a word", fix="start it again")
    if "error" in found:
        fault = found["error"] if isinstance(found["error"], dict) else {"message": str(found["error"])}
        where = f"{fault['where']}: " if fault.get("where") else ""
        return Command("failed", problem=where + str(fault.get("message")), fix=fault.get("hint"))
    return Command("done", (folder / "out.json").stat().st_mtime - began, found)


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
