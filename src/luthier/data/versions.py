"""Named data sets and their immutable versions: what they were made of, and which rows came and went.

A version is told by content: the files' digests, the mapping, the fixes and the split seed. It keeps its
rows' digests and places, never their texts, in a folder of the project.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.data.large import content_digests
from luthier.data.remote import pin
from luthier.data.rows import load_rows
from luthier.data.scan import Scanner, Sources, readings
from luthier.data.sources import resolve, resolve_weighted
from luthier.data.stats import copy_numbers
from luthier.errors import FileProblem, UsageError, did_you_mean
from luthier.files import replaced, write_text
from luthier.schema.data import DatasetVersion, VersionDiff
from luthier.schema.recipe import Recipe

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SHOWN = 5
_MAPPING = ("format", "columns", "system", "label_delimiter", "weights")


@dataclass(frozen=True, slots=True)
class Ledger:
    """The rows of a version, one entry each."""

    ids: NDArray[np.uint64]
    """First 64 bits of the content digest."""
    keys: NDArray[np.uint64]
    """The same of what is asked."""
    splits: NDArray[np.uint8]
    files: NDArray[np.int32]
    lines: NDArray[np.int64]
    split_names: tuple[str, ...]
    file_names: tuple[str, ...]

    def where(self, row: int) -> str:
        """``file:line`` of a row."""
        return f"{self.file_names[self.files[row]]}:{self.lines[row]}"


def datasets_root() -> Path:
    """Where versions are kept: LUTHIER_DATASETS, else ``datasets`` in the working directory."""
    return Path(os.environ.get("LUTHIER_DATASETS", "datasets")).expanduser().absolute()


def sources_of(recipe: Recipe, *, base: Path) -> Sources:
    """All files of a recipe, resolved."""
    data = recipe.data
    given = ({"validation": data.validation} if data.validation else {}) | data.test
    train, weights = resolve_weighted(data.train, data.weights, base=base)
    return Sources(train, {name: resolve(part, base=base) for name, part in given.items()}, weights)


def describe(
    recipe: Recipe,
    sources: Sources,
    *,
    name: str,
    fixes: Sequence[str] = (),
) -> DatasetVersion:
    """The version that a recipe's data are, without reading their rows (files are digested once)."""
    data = recipe.data
    parts = {"train": sources.train, **sources.given}
    digests = content_digests([file.path for part in parts.values() for file in part.files])
    shares = {} if data.test else {"test": data.test_share}
    if not data.validation:
        shares["validation"] = data.validation_share
    # Contents decide, not names: a file that is moved makes no new version.
    mapping = {
        key: value for key, value in data.model_dump(mode="json", include=set(_MAPPING)).items() if value
    }
    told = {
        "purpose": recipe.task,
        "contents": {split: [digests[file.path] for file in part.files] for split, part in parts.items()},
        "mapping": mapping,
        "fixes": list(fixes),
        "seed": recipe.seed,
        "shares": shares,
    }
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return DatasetVersion(
        name=name,
        version=digest[:12],
        created=datetime.now(UTC).isoformat(timespec="microseconds"),
        purpose=recipe.task,
        sources={
            split: tuple((file.shown, digests[file.path]) for file in part.files)
            for split, part in parts.items()
        },
        mapping=mapping,
        fixes=tuple(fixes),
        seed=recipe.seed,
        shares=shares,
        rows={},
    )


def record(
    recipe: Recipe,
    *,
    base: Path,
    name: str | None = None,
    fixes: Sequence[str] = (),
    root: Path | None = None,
) -> tuple[DatasetVersion, bool]:
    """Keep the version that a recipe's data are; True where it is new.

    ``leaks`` of a new version says which held-out splits of earlier versions have rows in its training
    rows. Raises UsageError without a name, and what reading raises: a version holds usable rows only.
    """
    name = name or recipe.data.name
    if name is None:
        raise UsageError("a version needs a name", hint="set data.name in the recipe, or name it")
    root = root or datasets_root()
    recipe = recipe.model_copy(update={"data": pin(recipe.data)})
    sources = sources_of(recipe, base=base)
    version = describe(recipe, sources, name=name, fixes=fixes)
    target = root / name / f"{version.version}.json"
    if target.is_file():
        return _read(target), False
    ledger = _ledger(recipe, sources, base)
    counts = np.bincount(ledger.splits, minlength=len(ledger.split_names)).tolist()
    leaks = {
        f"{old.version}/{split}": count
        for old in versions(name, root=root)
        for split, count in _leaks(ledger, _rows(old, root)).items()
    }
    rows = dict(zip(ledger.split_names, counts, strict=True))
    version = version.model_copy(update={"rows": rows, "leaks": leaks})
    target.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {
        key: getattr(ledger, key) for key in ("ids", "keys", "splits", "files", "lines")
    }
    arrays["split_names"] = np.array(ledger.split_names)
    arrays["file_names"] = np.array(ledger.file_names)
    with replaced(target.with_suffix(".npz")) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)
    write_text(target, version.model_dump_json(indent=2) + "\n")
    return version, True


def _ledger(recipe: Recipe, sources: Sources, base: Path) -> Ledger:
    if recipe.task in ("chat", "text-generation"):
        scanner = Scanner(recipe, sources, *readings(recipe, sources))
        splits = scanner.splits()
        names = tuple(dict.fromkeys(file.shown for split in splits for file in split.files))
        number = {name: place for place, name in enumerate(names)}
        parts: dict[str, list[NDArray[Any]]] = {
            key: [] for key in ("ids", "keys", "splits", "files", "lines")
        }
        for place, split in enumerate(splits):
            index, rows = split.index, split.rows()
            raw = index.column("ids")[rows].view(np.uint8).reshape(-1, 12)
            own = np.array([number[file.shown] for file in split.files], dtype=np.int32)
            parts["ids"].append(np.ascontiguousarray(raw[:, :8]).view(">u8").ravel().astype(np.uint64))
            parts["keys"].append(index.column("prompts")[rows])
            parts["splits"].append(np.full(len(rows), place, dtype=np.uint8))
            parts["files"].append(own[index.files()[rows]])
            parts["lines"].append(index.column("lines")[rows])
        joined = {key: np.concatenate(values) for key, values in parts.items()}
        return Ledger(**joined, split_names=tuple(split.name for split in splits), file_names=names)
    found = load_rows(recipe, base=base)
    held = {"validation": found.validation} if found.validation else {}
    members = {"train": found.train, **held, **found.tests}
    rows_of = [(place, row) for place, part in enumerate(members.values()) for row in part]
    names = tuple(dict.fromkeys(row.file for _, row in rows_of))
    number = {name: place for place, name in enumerate(names)}
    return Ledger(
        ids=np.array([int(row.id[:16], 16) for _, row in rows_of], dtype=np.uint64),
        keys=np.array([int(row.key[:16], 16) for _, row in rows_of], dtype=np.uint64),
        splits=np.array([place for place, _ in rows_of], dtype=np.uint8),
        files=np.array([number[row.file] for _, row in rows_of], dtype=np.int32),
        lines=np.array([row.line for _, row in rows_of], dtype=np.int64),
        split_names=tuple(members),
        file_names=names,
    )


def names(*, root: Path | None = None) -> list[str]:
    """Data sets that have versions."""
    root = root or datasets_root()
    return sorted({path.parent.name for path in root.glob("*/*.json")}) if root.is_dir() else []


def versions(name: str, *, root: Path | None = None) -> list[DatasetVersion]:
    """All versions of a data set, oldest first."""
    root = root or datasets_root()
    return sorted(
        (_read(path) for path in (root / name).glob("*.json")), key=lambda one: (one.created, one.version)
    )


def find(text: str, *, root: Path | None = None) -> DatasetVersion:
    """``name`` (its newest), ``name@version`` or the beginning of one. Raises UsageError."""
    root = root or datasets_root()
    name, _, wanted = text.partition("@")
    known = versions(name, root=root)
    if not known:
        every = names(root=root)
        hint = did_you_mean(name, every) or (
            f"there are {', '.join(every)}" if every else f"none is in {root}"
        )
        raise UsageError(f"no data set is named {name!r}", hint=f"{hint}; `luthier data add` makes one")
    fitting = [one for one in known if one.version.startswith(wanted)]
    if not wanted:
        return known[-1]
    if len(fitting) != 1:
        what = "no version" if not fitting else "several versions"
        begin = "begins" if not fitting else "begin"
        listed = ", ".join(one.version for one in fitting or known)
        raise UsageError(f"{what} of {name} {begin} with {wanted!r}", hint=f"there are {listed}")
    return fitting[0]


def diff(old: DatasetVersion, new: DatasetVersion, *, root: Path | None = None) -> VersionDiff:
    """Rows added, removed, changed, moved between two versions. Copies count one by one."""
    root = root or datasets_root()
    one, two = _rows(old, root), _rows(new, root)
    fresh, gone, moved = _matched(one, two)
    lost_keys = np.unique(one.keys[gone])
    changed = fresh & np.isin(two.keys, lost_keys)
    # Each row that went explains one that came, so no row counts as changed and removed at once.
    changed_rows = _paired(two.keys, changed, one.keys[gone])
    added = np.setdiff1d(np.flatnonzero(fresh), changed_rows)
    removed = int(gone.sum()) - len(changed_rows)
    removed_rows = _left(one.keys, gone, two.keys[changed_rows])
    return VersionDiff(
        old=old.id,
        new=new.id,
        added=len(added),
        removed=removed,
        changed=len(changed_rows),
        kept=int((~fresh).sum()),
        moved=len(moved),
        samples={
            "added": tuple(two.where(row) for row in added[:_SHOWN].tolist()),
            "removed": tuple(one.where(row) for row in removed_rows[:_SHOWN].tolist()),
            "changed": tuple(two.where(row) for row in changed_rows[:_SHOWN].tolist()),
            "moved": tuple(two.where(row) for row in moved[:_SHOWN].tolist()),
        },
        leaks=_leaks(two, one),
    )


def _matched(one: Ledger, two: Ledger) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]:
    """Rows of the new version that came, rows of the old one that went, and rows that are in another split.

    Copies are matched within their split first: a test row that is copied into train came there.
    """
    before, after = _numbered(one.ids + _salt(one)), _numbered(two.ids + _salt(two))
    fresh, gone = ~np.isin(after, before), ~np.isin(before, after)
    came, went = np.flatnonzero(fresh), np.flatnonzero(gone)
    now, then = _numbered(two.ids[came]), _numbered(one.ids[went])
    moved = came[np.isin(now, then)]
    fresh[moved] = False
    gone[went[np.isin(then, now)]] = False
    return fresh, gone, moved


def _salt(ledger: Ledger) -> NDArray[np.uint64]:
    """A number for the split of each row."""
    marks = [
        int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") for name in ledger.split_names
    ]
    return np.array(marks, dtype=np.uint64)[ledger.splits]


def _numbered(ids: NDArray[np.uint64]) -> NDArray[Any]:
    """Digests made different for the second, third... copy of a row."""
    with np.errstate(over="ignore"):
        return ids + copy_numbers(ids).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def _paired(
    keys: NDArray[np.uint64], candidates: NDArray[np.bool_], gone: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Candidate rows, no more of each key than rows of that key have gone."""
    left = dict(zip(*(part.tolist() for part in np.unique(gone, return_counts=True)), strict=True))
    found = []
    for row in np.flatnonzero(candidates).tolist():
        key = int(keys[row])
        if left.get(key, 0):
            left[key] -= 1
            found.append(row)
    return np.array(found, dtype=np.int64)


def _left(
    keys: NDArray[np.uint64], gone: NDArray[np.bool_], changed: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Rows that went and came back in no other form."""
    taken = _paired(keys, gone, changed)
    return np.setdiff1d(np.flatnonzero(gone), taken)


def _leaks(new: Ledger, old: Ledger) -> dict[str, int]:
    """Held-out split of the old version -> its rows (or prompts) that stand in the new version's train."""
    train = new.splits == new.split_names.index("train")
    found = {}
    for place, name in enumerate(old.split_names):
        if name == "train":
            continue
        rows = old.splits == place
        same = np.isin(old.ids[rows], new.ids[train]) | np.isin(old.keys[rows], new.keys[train])
        if same.any():
            found[name] = int(same.sum())
    return found


def _read(path: Path) -> DatasetVersion:
    try:
        return DatasetVersion.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FileProblem(
            f"cannot be read as a version: {str(error).splitlines()[0]}", file=path, hint="remove it"
        ) from error


def _rows(version: DatasetVersion, root: Path) -> Ledger:
    path = root / version.name / f"{version.version}.npz"
    try:
        with np.load(path) as kept:
            arrays = {name: kept[name] for name in kept.files}
    except (OSError, ValueError) as error:
        raise FileProblem(
            "the rows of this version cannot be read", file=path, hint="record it again"
        ) from error
    split_names, file_names = arrays.pop("split_names").tolist(), arrays.pop("file_names").tolist()
    return Ledger(**arrays, split_names=tuple(split_names), file_names=tuple(file_names))
