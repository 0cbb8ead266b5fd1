"""A run is a directory, and the directory is the truth.

``recipe.yaml`` (frozen, resolved), ``status.json`` (replaced atomically), ``metrics.jsonl`` and
``events.jsonl`` (appended), one JSON file for each finished stage with the digest of its inputs,
``checkpoints/``, ``artifacts/``, ``control/``, ``log.txt``, ``report.html``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from luthier.errors import FileProblem, UsageError, did_you_mean
from luthier.files import write_text
from luthier.schema.base import Record
from luthier.schema.load import dump_recipe, load_recipe
from luthier.schema.recipe import Recipe
from luthier.schema.run import Status

R = TypeVar("R", bound=Record)
Control = Literal["stop", "save"]
Stream = Literal["metrics", "events", "samples"]


def runs_root() -> Path:
    """Where runs are written: LUTHIER_RUNS, else ``runs`` in the working directory."""
    return Path(os.environ.get("LUTHIER_RUNS", "runs")).expanduser().resolve()


def digest_of(*parts: str) -> str:
    """A short digest of texts, used to tell whether a stage's inputs have changed."""
    mixed = hashlib.sha256()
    for part in parts:
        mixed.update(len(part).to_bytes(8, "big") + part.encode())
    return mixed.hexdigest()[:32]


class RunDirectory:
    """Reads and writes one run's files. Holds no state of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def id(self) -> str:
        """The run's name among its siblings."""
        return self.path.name

    # -- the frozen recipe -------------------------------------------------------------------

    @classmethod
    def create(cls, recipe: Recipe, *, root: Path | None = None, run_id: str | None = None) -> RunDirectory:
        """Make a new directory and freeze the resolved recipe in it."""
        root = root or runs_root()
        if run_id is None:
            stem = re.sub(r"[^A-Za-z0-9.]+", "-", recipe.name or "run").strip("-.").lower() or "run"
            run_id = f"{stem}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
        path, tries = root / run_id, 1
        while True:
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:
                tries += 1
                path = root / f"{run_id}-{tries}"
            except OSError as error:
                raise FileProblem(
                    f"the run's folder cannot be made: {error.strerror}",
                    file=path,
                    hint="set LUTHIER_RUNS to a folder that can be written",
                ) from None
        run = cls(path)
        (path / "control").mkdir()
        write_text(path / "recipe.yaml", dump_recipe(recipe))
        run.set_status(Status(state="queued"))
        return run

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return load_recipe(self.path / "recipe.yaml")

    # -- status ------------------------------------------------------------------------------

    @property
    def status(self) -> Status:
        """The state as last written. Errors: FileProblem where there is none."""
        try:
            return Status.model_validate_json((self.path / "status.json").read_text())
        except (FileNotFoundError, ValidationError) as error:
            raise FileProblem(
                "no readable status.json there: not a run of Luthier",
                file=self.path,
                hint="see `luthier runs`",
            ) from error

    def set_status(self, status: Status) -> None:
        """Replace the state."""
        write_text(self.path / "status.json", status.model_dump_json(indent=2) + "\n")

    # -- streams -----------------------------------------------------------------------------

    def append(self, stream: Stream, values: dict[str, Any]) -> None:
        """Append one JSON line in a single write, so that lines of two processes never mix."""
        line = json.dumps({"time": round(time.time(), 3), **values}, separators=(",", ":")) + "\n"
        with (self.path / f"{stream}.jsonl").open("ab", buffering=0) as file:
            file.write(line.encode())

    def lines(self, stream: Stream, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
        """Each complete line from a byte offset on, with the offset behind it. A torn last line waits."""
        try:
            file = (self.path / f"{stream}.jsonl").open("rb")
        except FileNotFoundError:
            return
        with file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                try:
                    yield json.loads(line), offset
                except json.JSONDecodeError:
                    continue  # a line torn by a crash, before the next process began a new one

    # -- stages ------------------------------------------------------------------------------

    def save_stage(self, name: str, inputs: str, result: Record | list[Any] | dict[str, Any]) -> None:
        """Write one finished stage with the digest of what it was made from."""
        plain = result.model_dump(mode="json") if isinstance(result, Record) else result
        document = {"inputs": inputs, "result": plain}
        write_text(self.path / f"{name}.json", json.dumps(document, indent=1) + "\n")

    def stage_values(self, name: str, inputs: str | None = None) -> Any | None:
        """The result of a finished stage, or None where there is none from these inputs."""
        try:
            document = json.loads((self.path / f"{name}.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        if inputs is not None and document.get("inputs") != inputs:
            return None
        return document["result"]

    def stage(self, name: str, record: type[R], inputs: str | None = None) -> R | None:
        """Like ``stage_values``, as a record."""
        values = self.stage_values(name, inputs)
        return None if values is None else record.model_validate(values)

    # -- control -----------------------------------------------------------------------------

    def ask(self, wish: Control) -> None:
        """Ask the worker for something; it looks after every step."""
        (self.path / "control").mkdir(exist_ok=True)
        (self.path / "control" / wish).touch()

    def asked(self) -> Control | None:
        """What was asked for and not yet taken back."""
        wishes: tuple[Control, ...] = ("stop", "save")
        for wish in wishes:
            if (self.path / "control" / wish).exists():
                return wish
        return None

    def clear(self, wish: Control) -> None:
        """Take a wish back, once it is done or a new start makes it void."""
        (self.path / "control" / wish).unlink(missing_ok=True)


def list_runs(root: Path | None = None) -> list[RunDirectory]:
    """All runs under the root, newest first."""
    root = root or runs_root()
    found = [p.parent for p in root.glob("*/status.json")]
    found.sort(
        key=lambda p: (p / "recipe.yaml").stat().st_mtime if (p / "recipe.yaml").exists() else 0, reverse=True
    )
    return [RunDirectory(p) for p in found]


def find_run(name: str, root: Path | None = None) -> RunDirectory:
    """A run by path, id, unique beginning of an id, or ``latest``. Errors: UsageError with the nearest."""
    path = Path(name).expanduser()
    if (path / "status.json").exists():
        return RunDirectory(path.resolve())
    runs = list_runs(root)
    if name == "latest" and runs:
        return runs[0]
    exact = [run for run in runs if run.id == name]
    found = exact or [run for run in runs if run.id.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(run.id for run in found[:5])
        raise UsageError(
            f"{name!r} is the beginning of {len(found)} runs: {ids}", hint="write more of the id"
        )
    raise UsageError(
        f"there is no run {name!r} under {root or runs_root()}",
        hint=did_you_mean(name, [run.id for run in runs]) or "see `luthier runs`, or set LUTHIER_RUNS",
    )
