"""Runs by the names that URLs give."""

from __future__ import annotations

from pathlib import Path

from luthier.errors import UsageError
from luthier.runs.directory import RunDirectory, find_run
from luthier.studio.problems import NotFound


def run_named(name: str, runs: Path) -> RunDirectory:
    """A run by its id, the beginning of one or ``latest``; never by a path. Errors: NotFound."""
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name or name.startswith("~"):
        raise NotFound(f"there is no run {name[:80]!r}", hint="see /runs")
    inside = runs / name
    if (inside / "status.json").is_file():
        return RunDirectory(inside)
    try:
        found = find_run(name, runs)
    except UsageError as error:
        raise NotFound(f"there is no run {name[:80]!r}", hint=error.hint) from None
    if found.path.parent.resolve() != runs.resolve():
        # A folder of that name where the studio was started is none of its runs.
        raise NotFound(f"there is no run {name[:80]!r}", hint="see /runs")
    return found
