"""Runs as lists and pages need them: read from their folders, remembered in an index that can be lost."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from luthier.errors import LuthierError
from luthier.runs.directory import RunDirectory, find_run
from luthier.runs.process import ACTIVE, current_state
from luthier.runs.stages import load_comparisons
from luthier.schema.estimate import Estimate, peak_on
from luthier.schema.recipe import Purpose
from luthier.studio.problems import NotFound
from luthier.studio.settings import StudioSettings

_VERSION = 1
_PLAIN = r"([A-Za-z0-9_][\w ./@+-]*?) *$"
_WRITTEN = {
    "name": re.compile(rf"^name: {_PLAIN}", re.MULTILINE),
    "task": re.compile(rf"^task: {_PLAIN}", re.MULTILINE),
    "model": re.compile(rf"^model:\n  id: {_PLAIN}", re.MULTILINE),
    "method": re.compile(rf"^method:\n  name: {_PLAIN}", re.MULTILINE),
}
"""Lines of a frozen recipe, where their values need no quotes."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run in a list."""

    id: str
    name: str
    model: str
    method: str
    task: str
    created: float
    state: str
    stage: str | None
    step: int
    total: int | None
    loss: float | None
    """The best loss on held-out rows, else the last one of training."""
    verdict: str | None
    parent: str | None
    origin: str | None
    """How it came from its parent: clone, extend, branch, warm-start, sweep."""
    failure: str | None


class RunIndex:
    """Rows of a runs' folder; a run whose files have not changed is not read again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._rows: dict[str, tuple[str, RunRow]] | None = None

    def rows(self) -> list[RunRow]:
        """All runs, newest first."""
        with self._lock:
            if self._rows is None:
                self._rows = self._load()
            found: dict[str, tuple[str, RunRow]] = {}
            changed = False
            for path in self.root.glob("*/status.json"):
                folder = path.parent
                stamp = _stamp(folder)
                known = self._rows.get(folder.name)
                if known is None or known[0] != stamp:
                    row = _read(RunDirectory(folder), None if known is None else known[1])
                    if row is None:
                        continue
                    known, changed = (stamp, row), True
                found[folder.name] = known
            changed = changed or len(found) != len(self._rows)
            self._rows = found
            if changed:
                self._save(found)
            rows = [row for _, row in found.values()]
        rows = [_with_state(self.root, row) for row in rows]
        return sorted(rows, key=lambda row: row.created, reverse=True)

    # The index on disk makes the first listing after a start as fast as the later ones.

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        folder = self.root / ".queue"
        folder.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(folder / f"runs-{_VERSION}.sqlite", timeout=10)
        try:
            db.execute("pragma journal_mode = wal")
            db.execute("create table if not exists runs (id text primary key, stamp text, body text)")
            yield db
            db.commit()
        finally:
            db.close()

    def _load(self) -> dict[str, tuple[str, RunRow]]:
        try:
            with self._open() as db:
                rows = db.execute("select id, stamp, body from runs").fetchall()
            return {name: (stamp, RunRow(**json.loads(body))) for name, stamp, body in rows}
        except (sqlite3.DatabaseError, OSError, TypeError, ValueError):
            return {}

    def _save(self, rows: dict[str, tuple[str, RunRow]]) -> None:
        try:
            with self._open() as db:
                db.execute("delete from runs")
                db.executemany(
                    "insert into runs values (?, ?, ?)",
                    [(name, stamp, json.dumps(asdict(row))) for name, (stamp, row) in rows.items()],
                )
        except (sqlite3.DatabaseError, OSError):
            return  # a folder that cannot be written can still be read


def _stamp(folder: Path) -> str:
    """Changes when a run's row may have: a run at work writes its status every few seconds."""
    times = []
    for name in ("status.json", "comparison.json", "train.json"):
        try:
            times.append(str((folder / name).stat().st_mtime_ns))
        except OSError:
            times.append("")
    return " ".join(times)


def _read(run: RunDirectory, before: RunRow | None) -> RunRow | None:
    try:
        status = run.status
        if before is None:
            name, task, model, method = headings(run)
            origin: dict[str, Any] = run.stage_values("origin") or {}
            before = RunRow(
                id=run.id,
                name=name or run.id,
                model=model,
                method=method,
                task=task,
                created=(run.path / "recipe.yaml").stat().st_mtime,
                state="",
                stage=None,
                step=0,
                total=None,
                loss=None,
                verdict=None,
                parent=origin.get("parent"),
                origin=origin.get("kind"),
                failure=None,
            )
        train: dict[str, Any] = run.stage_values("train") or {}
        comparisons = load_comparisons(run)
        loss = train.get("best_validation_loss")
        return replace(
            before,
            state=status.state,
            stage=status.stage,
            step=status.step,
            total=status.total_steps,
            loss=train.get("last_loss") if loss is None else loss,
            verdict=comparisons[0].verdict if comparisons else None,
            failure=None if status.failure is None else status.failure.message,
        )
    except (LuthierError, OSError, ValueError):
        return None  # a folder that is being made or removed


class Headings(NamedTuple):
    """What a run's recipe says first."""

    name: str | None
    task: Purpose
    model: str
    method: str


def headings(run: RunDirectory) -> Headings:
    """Name, task, model and method of a run's recipe.

    A frozen recipe is written by us, so its first lines are read as they are written: YAML's own parser
    takes ten seconds for two hundred runs. Whatever looks otherwise goes to the parser.
    """
    text = (run.path / "recipe.yaml").read_text(encoding="utf-8")
    found = {key: match[1] for key, pattern in _WRITTEN.items() if (match := pattern.search(text))}
    tuned = "\npreference:" in text
    named = "name" in found or not re.search(r"^name:", text, re.MULTILINE)
    if named and {"task", "model", "method"} <= found.keys():
        name, task, model, method = found.get("name"), found["task"], found["model"], found["method"]
    else:
        recipe = run.recipe
        name, task, model, method = recipe.name, recipe.task, recipe.model.id, recipe.method.name
    # What the run was started with was held against the schema then.
    return Headings(name, cast("Purpose", task), model, f"{method} · preferences" if tuned else method)


def _with_state(root: Path, row: RunRow) -> RunRow:
    """A run that says that it works may be lost: its process tells."""
    if row.state not in ACTIVE:
        return row
    try:
        return replace(row, state=current_state(RunDirectory(root / row.id)))
    except LuthierError:
        return row


def matching(rows: list[RunRow], *, status: str = "", q: str = "", task: str = "") -> list[RunRow]:
    """Rows by state and by words, each of which stands in name, id, model, method or verdict."""
    words = q.lower().split()
    return [
        row
        for row in rows
        if (not status or (row.state in ACTIVE if status == "active" else row.state == status))
        and (not task or row.task == task)
        and all(
            word in f"{row.id} {row.name} {row.model} {row.method} {row.verdict or ''}".lower()
            for word in words
        )
    ]


def tree_of(rows: list[RunRow], run_id: str) -> list[tuple[int, RunRow]]:
    """The family of a run: its oldest known ancestor and all that came of it, with their depth."""
    by_id = {row.id: row for row in rows}
    top = by_id.get(run_id)
    seen = set()
    while top is not None and top.parent in by_id and top.id not in seen:
        seen.add(top.id)
        top = by_id[top.parent]
    if top is None:
        return []
    children: dict[str | None, list[RunRow]] = {}
    for row in sorted(rows, key=lambda r: r.created):
        children.setdefault(row.parent, []).append(row)
    found: list[tuple[int, RunRow]] = []
    pending, listed = [(0, top)], set()
    while pending:
        depth, row = pending.pop()
        if row.id in listed:
            continue
        listed.add(row.id)
        found.append((depth, row))
        pending += [(depth + 1, child) for child in reversed(children.get(row.id, []))]
    return found


def predicted_peak(run: RunDirectory, estimate: Estimate) -> float:
    """Bytes predicted for what the peak of this run's training is measured as."""
    on_gpu = bool((run.stage_values("hardware") or {}).get("accelerators"))
    return peak_on(estimate, "cuda" if on_gpu else "cpu").expected


def find(settings: StudioSettings, name: str) -> RunDirectory:
    """A run by id or ``latest``: never a path. Errors: NotFound."""
    if "/" in name or "\\" in name or name.startswith((".", "~")) or "\0" in name:
        raise NotFound("there is no such run")
    try:
        found = find_run(name, settings.runs)
    except LuthierError as error:
        raise NotFound(error.message, hint=error.hint) from None
    except OSError:
        raise NotFound("there is no such run") from None
    if found.path.parent != settings.runs.resolve() and found.path.parent != settings.runs:
        raise NotFound("there is no such run")
    return found
