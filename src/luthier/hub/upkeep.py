"""What is cached, how large it is, and what may go."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from luthier.errors import ModelNotFound, did_you_mean
from luthier.hub import cache
from luthier.hub.records import Record, download_lock, record_path, records, superseded
from luthier.hub.store import PART, hub_cache

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo, DeleteCacheStrategy, HFCacheInfo

_IN_USE_SECONDS = 3600  # younger work may still be going on


@dataclass(frozen=True, slots=True)
class CachedModel:
    """One revision of a model in the Hub's cache.

    bytes: of its files, shared ones counted in each; used: seconds since the epoch; own: fetched by Luthier.
    """

    id: str
    revision: str
    asked: str
    bytes: int
    used: float
    own: bool
    licence: str | None


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that can go. reason: why, for people; bytes: what that frees."""

    name: str
    reason: str
    bytes: int
    paths: tuple[Path, ...] = ()
    record: Record | None = None


def cached_models() -> list[CachedModel]:
    """All models in the Hub's cache, by id, newest revision first."""
    notes = {(record.id, record.revision): record for record in records()}
    found = []
    for repo in _scan():
        for revision in repo.revisions:
            note = notes.get((repo.repo_id, revision.commit_hash))
            names = ", ".join(sorted(revision.refs)) or (note.asked if note else "")
            found.append(
                CachedModel(
                    repo.repo_id,
                    revision.commit_hash,
                    names,
                    revision.size_on_disk,
                    revision.last_modified,
                    note is not None,
                    note.licence if note else None,
                )
            )
    return sorted(found, key=lambda model: (model.id.lower(), -model.used))


def leftovers() -> list[Leftover]:
    """What nobody needs: unfinished work, and revisions that a newer download replaced."""
    found = [
        Leftover(path.name, "unfinished work", cache.size_of(path), (path,))
        for path in cache.unfinished()
        if time.time() - path.stat().st_mtime > _IN_USE_SECONDS
    ]
    base = hub_cache()
    for part in sorted(base.glob(f"models--*/blobs/*{PART}")) if base.is_dir() else ():
        folder = part.parent.parent.name
        if _being_fetched(folder):
            continue
        name = folder.removeprefix("models--").replace("--", "/")
        found.append(Leftover(name, "a download that broke off", part.stat().st_size, (part,)))
    for record in superseded(records()):
        deletion = _deletion(record)
        words = f"revision {record.revision[:7]}, replaced by a newer {record.asked}"
        freed = deletion.expected_freed_size if deletion else 0
        found.append(Leftover(record.id, words, freed, record=record))
    return found


def of_model(model_id: str) -> list[Leftover]:
    """Everything of one model in the Hub's cache; ModelNotFound where there is nothing."""
    repos = {repo.repo_id: repo for repo in _scan()}
    notes = records(model_id)
    repo = repos.get(model_id)
    if repo is None and not notes:
        raise ModelNotFound(
            f"{model_id} is not in the cache",
            hint=did_you_mean(model_id, repos) or "`luthier get --list` shows what is",
        )
    found = [Leftover(model_id, f"revision {note.revision[:7]}", 0, record=note) for note in notes]
    if repo:
        folder = Path(repo.repo_path)
        found.insert(0, Leftover(model_id, "all revisions", cache.size_of(folder), (folder,)))
    return found


def prune(items: Sequence[Leftover]) -> int:
    """Delete what `leftovers` or `of_model` named, and return the bytes that this freed."""
    freed = sum(cache.remove(path) for item in items for path in item.paths if path.exists())
    gone = [item.record for item in items if item.record]
    for record in gone:
        deletion = _deletion(record)
        if deletion:
            freed += deletion.expected_freed_size
            deletion.execute()
        path = record_path(record)
        path.unlink(missing_ok=True)
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
    return freed


def _being_fetched(folder: str) -> bool:
    lock = FileLock(download_lock(folder))
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True


def _deletion(record: Record) -> DeleteCacheStrategy | None:
    """What deleting one revision of one model takes; None where it is gone already."""
    info = _info()
    repos = [repo for repo in info.repos if repo.repo_id == record.id] if info else []
    if not info or not any(r.commit_hash == record.revision for repo in repos for r in repo.revisions):
        return None
    # Copies of a repository share their commits: only this model's may go.
    return replace(info, repos=frozenset(repos)).delete_revisions(record.revision)


def _scan() -> list[CachedRepoInfo]:
    info = _info()
    return [repo for repo in info.repos if repo.repo_type == "model"] if info else []


def _info() -> HFCacheInfo | None:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        return scan_cache_dir(hub_cache())
    except CacheNotFound:
        return None
