"""What is cached, how large it is, and what may go."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import ModelNotFound, did_you_mean
from luthier.hub import cache
from luthier.hub.records import Record, record_path, records, superseded
from luthier.hub.remote import hub_cache
from luthier.hub.snapshot import PART


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
        Leftover(path.name, "unfinished work", cache.size_of(path), (path,)) for path in cache.unfinished()
    ]
    base = hub_cache()
    for part in sorted(base.glob(f"models--*/blobs/*{PART}")) if base.is_dir() else ():
        name = part.parent.parent.name.removeprefix("models--").replace("--", "/")
        found.append(Leftover(name, "a download that broke off", part.stat().st_size, (part,)))
    for record in superseded(records()):
        freed = _freed([record])
        words = f"revision {record.revision[:7]}, replaced by a newer {record.asked}"
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
    freed = 0
    gone = [item.record for item in items if item.record]
    doomed = {path for item in items for path in item.paths}
    revisions = [record.revision for record in gone]
    known = {revision.commit_hash for repo in _scan() for revision in repo.revisions}
    strategy = _info().delete_revisions(*[r for r in revisions if r in known])
    if not any(Path(repo).name == path.name for path in doomed for repo in strategy.repos):
        freed += strategy.expected_freed_size
        strategy.execute()
    for path in doomed:
        freed += cache.remove(path)
    for record in gone:
        record_path(record).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # other revisions' notes may stand beside it
            record_path(record).parent.rmdir()
    return freed
