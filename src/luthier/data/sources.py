"""Names of files, folders and globs into a list of files, in a stable order."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import FileProblem, did_you_mean
from luthier.schema.recipe import DataChoice

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}
COMPRESSIONS = (".gz", ".zst")
_STRUCTURED = {"jsonl", "json", "csv", "tsv", "parquet", "arrow"}
_HELD_OUT = ("validation", "valid", "val", "dev", "test", "eval", "heldout", "held_out", "held-out")
_PAPERS = ("readme", "license", "licence", "notice", "copying", "changelog", "sha256sums")


@dataclass(frozen=True, slots=True)
class Source:
    """One file with how to read it."""

    path: Path
    shown: str
    """The path as the user would write it, for messages."""
    kind: str
    """A value of FORMATS."""
    compression: str | None


@dataclass(frozen=True, slots=True)
class Resolved:
    """Files in order, and what a person should know about how they were chosen."""

    files: tuple[Source, ...]
    notes: tuple[str, ...] = ()


def resolve(sources: tuple[str, ...], *, base: Path) -> Resolved:
    """Expand files, folders, globs and names of the Hub, relative to base. A file named twice is read once.

    A folder gives its data files, at any depth; where some of them are named train and others
    validation or test, only the first are taken, and a note says so.
    Raises FileProblem for what is missing or of an unknown kind.
    """
    found: dict[Path, Source] = {}
    notes: list[str] = []
    for source in sources:
        if source.startswith("hub:"):
            from luthier.data.remote import fetch

            fetched = fetch(source)
            found.update({file.path: file for file in fetched.files})
            notes.append(fetched.note)
            continue
        path = Path(source).expanduser()
        path = path if path.is_absolute() else base / path
        if path.is_dir():
            members, note = _folder(path, source)
            notes += note
        elif path.exists():
            members = [path]
        elif glob.has_magic(source):
            members = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207 - a full path with magic
            members = [member for member in members if member.is_file()]
            if not members:
                raise FileProblem("no file matches this pattern", file=source, hint=_near(path))
        else:
            raise _missing(source, path)
        for member in members:
            found.setdefault(member.resolve(), source_of(member, _shown(member, base)))
    if not found:
        raise FileProblem("no data file is named", hint="name a file, a folder or a glob under data.train")
    return Resolved(tuple(found.values()), tuple(notes))


def demand_files(data: DataChoice, *, base: Path) -> None:
    """Look that the files and folders of a recipe's rows are there, without reading any.

    It costs nothing, so it comes before a model is fetched. Patterns and names of the Hub are left to
    `resolve`. Raises FileProblem for the first that is missing.
    """
    for source in (*data.train, *data.validation, *(one for part in data.test.values() for one in part)):
        path = base / Path(source).expanduser()
        if not (source.startswith("hub:") or glob.has_magic(source) or path.exists()):
            raise _missing(source, path)


def resolve_weighted(
    sources: tuple[str, ...], weights: tuple[float, ...], *, base: Path
) -> tuple[Resolved, dict[str, float]]:
    """Files in order, and the weight of each file (as shown) that has one other than 1."""
    whole = resolve(sources, base=base)
    found: dict[str, float] = {}
    for source, weight in zip(sources, weights, strict=False):
        for file in resolve((source,), base=base).files:
            found.setdefault(file.shown, weight)
    return whole, {file: weight for file, weight in found.items() if weight != 1}


def source_of(path: Path, shown: str) -> Source:
    """One file by its suffixes. Raises FileProblem for a kind that is not read."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else None
    kind = FORMATS.get(suffixes[-1]) if suffixes else None
    if kind is None:
        raise FileProblem(
            f"unknown kind of file: {''.join(path.suffixes) or 'no suffix'}",
            file=shown,
            hint=f"Luthier reads {', '.join(FORMATS)}, and .gz or .zst of each; name the file by what it is",
        )
    return Source(path, shown, kind, compression)


def _folder(path: Path, shown: str) -> tuple[list[Path], list[str]]:
    members = [
        member
        for member in sorted(path.rglob("*"))
        if member.is_file()
        and not any(part.startswith(".") for part in member.relative_to(path).parts)
        and _kind(member) is not None
        and not member.name.lower().startswith(_PAPERS)
    ]
    structured = [member for member in members if _kind(member) in _STRUCTURED]
    # A lone .json beside row files is a list of labels or a description (dataset_info.json), not rows.
    rows = [member for member in structured if _kind(member) != "json"]
    members = rows or structured or members
    if not members:
        raise FileProblem(
            "this folder holds no data file",
            file=shown,
            hint=f"Luthier reads {', '.join(FORMATS)}, and .gz or .zst of each",
        )
    train = [member for member in members if _part(member) == "train"]
    held_out = [member for member in members if _part(member) == "held out"]
    if train and held_out:
        names = ", ".join(member.name for member in held_out[:4])
        return train, [
            f"{shown}: read {len(train)} training file(s); left aside {names}: name them under "
            "data.validation or data.test to use them"
        ]
    return members, []


def _kind(path: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSIONS]
    return FORMATS.get(suffixes[-1]) if suffixes else None


def _part(path: Path) -> str | None:
    """``train`` or ``held out`` by the file's name, None where it does not say."""
    words = path.name.lower().replace("-", "_").split(".")[0]
    if words.startswith("train") or words.endswith("_train"):
        return "train"
    if words.startswith(_HELD_OUT) or words.rsplit("_", 1)[-1] in _HELD_OUT:
        return "held out"
    return None


def _shown(path: Path, base: Path) -> str:
    """Relative to a folder, whole where that is the root: recipes that were read have full paths."""
    if base == Path(base.anchor):
        return str(path)
    try:
        return str(path.relative_to(base))
    except ValueError:
        return str(path)


def _missing(source: str, path: Path) -> FileProblem:
    return FileProblem("there is no such file", file=source, hint=_near(path))


def _near(path: Path) -> str:
    parent = path.parent
    if parent.is_dir():
        names = [member.name for member in parent.iterdir() if not member.name.startswith(".")]
        return did_you_mean(path.name, names) or f"look in {parent}, or give a full path"
    return "give the path from the folder of the recipe, or a full path"
