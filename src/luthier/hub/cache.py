"""The folder that Luthier keeps between runs: wheels, converted models, tools, records of downloads."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import DoesNotFit, FileProblem
from luthier.files import UNFINISHED, cache_dir, readable


def room(kind: str) -> Path:
    """A folder of the cache, made if it is missing; FileProblem where it cannot be written."""
    path = cache_dir() / kind
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileProblem(
            f"the cache folder cannot be made: {error.strerror}",
            file=path,
            hint="name another one: LUTHIER_CACHE=/path/to/folder",
        ) from error
    return path


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """Something kept in the cache. bytes: on disk; used: seconds since the epoch of its last change."""

    kind: str
    name: str
    path: Path
    bytes: int
    used: float


def entries() -> list[CacheEntry]:
    """Everything in Luthier's own cache, largest first: one entry a file or folder of each room."""
    base = cache_dir()
    if not base.is_dir():
        return []
    rooms = [path for path in base.iterdir() if path.is_dir()]
    kept = [(kind.name, child) for kind in rooms for child in kind.iterdir() if child.suffix != ".lock"]
    kept += [("", path) for path in base.iterdir() if path.is_file()]
    found = [CacheEntry(kind, path.name, path, size_of(path), path.stat().st_mtime) for kind, path in kept]
    return sorted(found, key=lambda entry: (-entry.bytes, entry.kind, entry.name))


def _title(path: Path) -> str:
    """The name of a wheel that lies in a folder named by its hash; any other entry's own name."""
    wheels = sorted(path.glob("*.whl")) if path.is_dir() else []
    return wheels[0].name if len(wheels) == 1 else path.name


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; links count nothing."""
    if path.is_symlink():
        return 0
    if path.is_file():
        return path.stat().st_size
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file() and not f.is_symlink())


def remove(path: Path) -> int:
    """Delete a file or folder of the cache and return the bytes that were freed.

    A folder is renamed first, so that nobody meets half of it.
    """
    size = size_of(path)
    if path.is_dir() and not path.is_symlink():
        doomed = path.with_name(f"{UNFINISHED}{path.name}")
        if path.name.startswith(UNFINISHED):
            doomed = path
        else:
            if doomed.exists():
                shutil.rmtree(doomed)
            path.rename(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)
    return size


def unfinished() -> list[Path]:
    """What interrupted work left behind in the cache."""
    base = cache_dir()
    return sorted(base.rglob(f"{UNFINISHED}*")) if base.is_dir() else []


def need_space(where: Path, size: int, what: str) -> None:
    """Raise DoesNotFit unless the disk of a folder (which need not exist yet) has size bytes free."""
    existing = where
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < size:
        raise DoesNotFit(
            f"{what} needs {readable(size)} of disk and {readable(free)} are free",
            file=where,
            hint="free some space (`luthier get --list` shows what is cached, `luthier get --prune` removes "
            "leftovers), or keep the cache on a larger disk: LUTHIER_CACHE for Luthier's own, HF_HOME for "
            "models of the Hub",
        )
