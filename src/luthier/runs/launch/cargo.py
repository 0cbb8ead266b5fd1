"""What a job takes along: its recipe with the paths of the cluster, and the files that must be there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath

from luthier.errors import FileProblem, UsageError
from luthier.schema.launch import LaunchChoice
from luthier.schema.load import dump_recipe
from luthier.schema.recipe import Lora, Recipe
from luthier.words import readable

NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
"""What SLURM, SkyPilot and Kubernetes all take for a name."""


@dataclass(frozen=True)
class Carried:
    """A file or folder of this machine, and where it is there, relative to the recipe."""

    here: Path
    there: str
    bytes: int


@dataclass
class Cargo:
    """What a job takes along."""

    recipe: str
    """The recipe as YAML, with the paths of the cluster."""
    files: list[Carried] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What must be there, and what will be fetched, in words."""

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(one.bytes for one in self.files)


def job_name(given: str | None, recipe: Recipe, path: Path) -> str:
    """Name of a job and its run. Errors: UsageError for one that a cluster would refuse."""
    if given is not None:
        if NAME.fullmatch(given) is None:
            raise UsageError(
                f"--name {given}: not a name that all clusters take",
                hint="use at most 40 small letters, digits and dashes, a letter first",
            )
        return given
    stem = re.sub(r"[^a-z0-9]+", "-", (recipe.name or path.stem).lower()).strip("-")[:24].strip("-")
    stem = stem if stem[:1].isalpha() else f"run-{stem}".strip("-")
    return f"{stem}-{datetime.now().astimezone():%y%m%d-%H%M%S}"


def recipe_for(recipe: Recipe, choice: LaunchChoice) -> Recipe:
    """The recipe on so many devices of so many machines."""
    devices = choice.nodes * max(1, choice.gpus)
    training = recipe.training.model_copy(update={"devices": devices, "nodes": choice.nodes})
    return Recipe.model_validate(recipe.model_copy(update={"training": training}).model_dump())


def load_in_place(recipe: Recipe) -> Cargo:
    """All paths as they are here: the cluster's machines see this one's disk. Errors: FileProblem."""
    cargo = Cargo(dump_recipe(recipe))
    paths = [one.here for one in _carry(recipe)[1]]
    if paths:
        cargo.notes.append(f"the cluster's machines must read, as this one: {_listed(paths)}")
    _remote_notes(recipe, cargo)
    return cargo


def load_along(recipe: Recipe) -> Cargo:
    """All files beside the recipe, in folders of their own. Errors: FileProblem for one that is missing."""
    moved, files = _carry(recipe)
    cargo = Cargo(dump_recipe(moved), files)
    _remote_notes(recipe, cargo)
    return cargo


def _remote_notes(recipe: Recipe, cargo: Cargo) -> None:
    model = recipe.model
    if not Path(model.id).is_absolute() and model.from_scratch is None:
        cargo.notes.append(
            f"{model.id} is fetched there: its index must be reached, and a gated one needs a token"
        )
    hub = [one for one in _sources(recipe) if one.startswith("hub:")]
    if hub:
        cargo.notes.append(f"fetched there: {', '.join(hub)}")


def _sources(recipe: Recipe) -> list[str]:
    data = recipe.data
    return [*data.train, *data.validation, *(file for files in data.test.values() for file in files)]


def _carry(recipe: Recipe) -> tuple[Recipe, list[Carried]]:
    """The recipe with paths relative to itself, and what they stand for."""
    files: dict[Path, Carried] = {}

    def moved(source: str, room: str) -> str:
        if source.startswith("hub:"):
            return source
        path = Path(source)
        if path not in files:
            there = str(PurePosixPath(room) / f"{len(files)}-{_plain(path.name)}")
            files[path] = Carried(path, there, _size(path))
        return files[path].there

    def all_moved(sources: Iterable[str]) -> tuple[str, ...]:
        return tuple(moved(one, "data") for source in sources for one in _expanded(source))

    data, model, method = recipe.data, recipe.model, recipe.method
    if data.weights and any(len(_expanded(one)) != 1 for one in data.train):
        raise UsageError(
            "a weighed source of training rows is a pattern of several files",
            hint="name each file with its weight",
        )
    rows = {
        "train": all_moved(data.train),
        "validation": all_moved(data.validation),
        "test": {name: all_moved(sources) for name, sources in data.test.items()},
    }
    changes: dict[str, object] = {}
    if Path(model.id).is_absolute():
        changes["id"] = moved(model.id, "model")
    if model.chat_template is not None and Path(model.chat_template).exists():
        changes["chat_template"] = moved(model.chat_template, "model")
    if isinstance(method, Lora) and method.init_from is not None:
        method = method.model_copy(update={"init_from": moved(method.init_from, "model")})
    found = recipe.model_copy(
        update={
            "data": data.model_copy(update=rows),
            "model": model.model_copy(update=changes),
            "method": method,
        }
    )
    return found, list(files.values())


def _expanded(source: str) -> tuple[str, ...]:
    """The files of a pattern; anything else as it is."""
    if source.startswith("hub:") or Path(source).exists():
        return (source,)
    found = tuple(str(one) for one in sorted(Path("/").glob(source.lstrip("/"))))
    if not found:
        raise FileProblem(
            "no such file", file=source, hint="the job's files are looked for before it is sent"
        )
    return found


def _plain(name: str) -> str:
    """A file's name that needs no quoting anywhere; its ending says what it is."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-") or "file"


def _size(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_size
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())


def _listed(paths: list[Path]) -> str:
    return ", ".join(f"{path} ({readable(_size(path))})" for path in paths)
