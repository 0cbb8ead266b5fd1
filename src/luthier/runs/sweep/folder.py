"""A sweep's folder: ``sweep.json``, ``recipe.yaml``, ``study.db``, ``result.json`` and its page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ValidationError

from luthier.errors import FileProblem, UsageError, did_you_mean
from luthier.files import write_text
from luthier.runs.directory import runs_root
from luthier.runs.process import identity
from luthier.schema.load import dump_recipe, load_recipe
from luthier.schema.recipe import Recipe
from luthier.schema.run import WorkerIdentity
from luthier.schema.sweep import SweepChoice, SweepResult

CHOICE, RECIPE, RESULT, WORKER = "sweep.json", "recipe.yaml", "result.json", "worker.json"


class SweepFolder:
    """Reads and writes a sweep's files. Its runs lie beside it, among all others."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, choice: SweepChoice, recipe: Recipe, *, root: Path | None = None) -> SweepFolder:
        """Make a folder of the choice's name, with what all runs share. Errors: UsageError if it is taken."""
        path = sweeps_root(root) / choice.name
        if path.exists():
            raise UsageError(
                f"there is a sweep {choice.name} already",
                hint=f"go on with it: luthier sweep --resume {choice.name}, or give another --name",
                file=path,
            )
        path.mkdir(parents=True)
        write_text(path / RECIPE, dump_recipe(recipe))
        write_text(path / CHOICE, choice.model_dump_json(indent=1) + "\n")
        return cls(path)

    @property
    def choice(self) -> SweepChoice:
        """What was asked for. Errors: FileProblem."""
        try:
            return SweepChoice.model_validate_json((self.path / CHOICE).read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise FileProblem("no readable sweep.json there: not a sweep", file=self.path) from error

    def extend(self, trials: int) -> SweepChoice:
        """Ask for more trials. Errors: UsageError for fewer than there are."""
        choice = self.choice
        if trials < choice.trials:
            raise UsageError(
                f"{choice.name} was asked for {choice.trials} trials", hint="ask for more, not fewer"
            )
        choice = choice.model_copy(update={"trials": trials})
        write_text(self.path / CHOICE, choice.model_dump_json(indent=1) + "\n")
        return choice

    def recipe(self, overrides: tuple[str, ...] = ()) -> Recipe:
        """What all runs share, with some settings of one. Errors: RecipeError."""
        return load_recipe(self.path / RECIPE, overrides)

    @property
    def result(self) -> SweepResult | None:
        """What was found so far, as last written."""
        try:
            return SweepResult.model_validate_json((self.path / RESULT).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValidationError):
            return None

    def save(self, result: SweepResult) -> None:
        """Replace what was found."""
        write_text(self.path / RESULT, result.model_dump_json(indent=1) + "\n")

    @contextmanager
    def held(self) -> Iterator[None]:
        """One process at a time works on a sweep. Errors: UsageError."""
        lock = FileLock(self.path / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(f"{self.path.name} is being worked on by another process") from None
        try:
            write_text(self.path / WORKER, identity().model_dump_json() + "\n")
            yield
        finally:
            lock.release()

    @property
    def worker(self) -> WorkerIdentity | None:
        """The process that works on it, or was the last to; whether it lives is another question."""
        try:
            return WorkerIdentity.model_validate_json((self.path / WORKER).read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            return None


def sweeps_root(root: Path | None = None) -> Path:
    """Where sweeps lie: beside the runs, in a folder of their own."""
    return (root or runs_root()) / "sweeps"


def list_sweeps(root: Path | None = None) -> list[SweepFolder]:
    """All sweeps, newest first."""
    found = sorted(sweeps_root(root).glob(f"*/{CHOICE}"), key=lambda p: p.stat().st_mtime, reverse=True)
    return [SweepFolder(path.parent) for path in found]


def find_sweep(name: str, root: Path | None = None) -> SweepFolder:
    """A sweep by path, name, beginning of one, or ``latest``. Errors: UsageError with the nearest."""
    path = Path(name).expanduser()
    if (path / CHOICE).is_file():
        return SweepFolder(path.resolve())
    known = list_sweeps(root)
    if name == "latest" and known:
        return known[0]
    exact = [one for one in known if one.path.name == name]
    found = exact or [one for one in known if one.path.name.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{name!r} is the beginning of {len(found)} sweeps", hint="write more of the name")
    raise UsageError(
        f"there is no sweep {name!r} under {sweeps_root(root)}",
        hint=did_you_mean(name, [one.path.name for one in known]) or "see `luthier sweep --list`",
    )


def name_for(recipe: Recipe, kind: str) -> str:
    """A new sweep's name: the recipe's and the time."""
    stem = re.sub(r"[^A-Za-z0-9.]+", "-", recipe.name or "sweep").strip("-.").lower() or "sweep"
    what = {"search": "sweep", "models": "models"}.get(kind, "curve")
    return f"{stem}-{what}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
