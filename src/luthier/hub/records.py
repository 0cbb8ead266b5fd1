"""Luthier's own notes on what it downloaded, so that a model is found again without the network."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from luthier.files import cache_dir, write_text
from luthier.hub.cache import room
from luthier.hub.remote import RemoteFile, RemoteModel
from luthier.hub.store import folder_name


@dataclass(frozen=True, slots=True)
class Record:
    """One download. revision: commit hash; asked: the name it was asked by; fetched: seconds, epoch."""

    id: str
    revision: str
    asked: str
    licence: str | None
    files: tuple[RemoteFile, ...]
    fetched: float


def write_record(model: RemoteModel) -> Record:
    """Note that all files of a model are on disk."""
    record = Record(model.id, model.revision, model.asked, model.licence, model.files, time.time())
    path = record_path(record)
    write_text(path, json.dumps(asdict(record), indent=1))
    return record


def record_path(record: Record) -> Path:
    """Where the note of a download lies."""
    return room("hub") / folder_name(record.id) / f"{record.revision}.json"


def download_lock(folder: str) -> Path:
    """The lock that whoever downloads a model holds. folder: its name in the Hub's cache."""
    return room("hub") / f"{folder}.lock"


def records(model_id: str | None = None) -> list[Record]:
    """Downloads that Luthier made, of one model or of all, newest first."""
    folder = folder_name(model_id) if model_id else "*"
    found = (_read(path) for path in (cache_dir() / "hub").glob(f"{folder}/[!.]*.json"))
    return sorted((record for record in found if record), key=lambda record: -record.fetched)


def superseded(all_records: Iterable[Record]) -> list[Record]:
    """Downloads of which a newer revision was fetched under the same name (branch or tag)."""
    newest: set[tuple[str, str]] = set()
    old = []
    for record in sorted(all_records, key=lambda record: -record.fetched):
        if (record.id, record.asked) in newest:
            old.append(record)
        newest.add((record.id, record.asked))
    return old


def _read(path: Path) -> Record | None:
    # A note that cannot be read is no note: the files it speaks of are found or fetched again.
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        raw = json.loads(path.read_text(encoding="utf-8"))
        return Record(**{**raw, "files": tuple(RemoteFile(**file) for file in raw["files"])})
    return None
