"""Models on disk: fetched from the Hub with resume, and found again without it.

Files land in the Hub's own cache, which other programs share. A large file is written beside its
final place and keeps what has arrived when a transfer breaks off, since huggingface_hub 2 begins such
a file anew in the next call; it is then checked against the hash that the Hub names for it.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from luthier.errors import FileProblem, ModelNotFound, Unreachable, did_you_mean
from luthier.files import file_sha256, readable
from luthier.hub.cache import need_space
from luthier.hub.records import download_lock, records, write_record
from luthier.hub.remote import (
    RemoteFile,
    RemoteModel,
    endpoint,
    hub_errors,
    look_up,
    offline_asked,
    own_version,
)
from luthier.hub.select import needed_files
from luthier.hub.store import blob_path, file_size, folder_name, hub_cache, part_path, snapshot_path
from luthier.schema.protocols import Progress

__all__ = ["LocalModel", "download", "look_up", "resolve_model"]

_WORKERS = 4
_LARGEST_PLAIN = 50 * 10**9  # the Hub serves larger files in another way, which huggingface_hub knows
_COMMIT = re.compile(r"[0-9a-f]{7,40}")


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model on disk. revision: the Hub's commit; it and licence are None where nothing says."""

    path: Path
    id: str
    revision: str | None
    licence: str | None


def download(model: RemoteModel, *, progress: Progress | None = None) -> LocalModel:
    """Fetch what is missing of a model and return where it lies.

    Goes on from where an earlier transfer ended. progress is told of bytes, those on disk included.
    Raises DoesNotFit before the first byte, Unreachable when the transfer breaks off.
    """
    need_space(hub_cache(), model.missing_bytes, f"{model.id} ({readable(model.bytes)})")
    counter = _Counter(model.bytes, progress)
    with FileLock(download_lock(folder_name(model.id))), hub_errors(model.id, model.revision):
        pool = ThreadPoolExecutor(_WORKERS)
        try:
            for task in [pool.submit(_fetch, model, file, counter) for file in model.files]:
                task.result()
        except BaseException:
            counter.stopped = True
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        write_record(model)
    return LocalModel(snapshot_path(model.id, model.revision), model.id, model.revision, model.licence)


def resolve_model(
    id_or_dir: str, *, revision: str | None = None, offline: bool = False, known: Iterable[str] = ()
) -> LocalModel:
    """Find a model on disk: a folder, or what `luthier get` or another program put into the Hub's cache.

    Never downloads. revision: branch, tag or commit (seven letters will do); the newest on disk if
    None. offline only changes the advice. known: ids to suggest from. Raises FileProblem for a folder
    that holds no model, and ModelNotFound with the command that fetches it.
    """
    folder = Path(id_or_dir).expanduser()
    if folder.is_dir():
        return _local_folder(folder)
    if id_or_dir.startswith((".", "/", "~")) or id_or_dir.count("/") > 1:
        raise FileProblem(
            "there is no such folder", file=folder, hint="give a folder with a saved model, or an id"
        )
    for record in records(id_or_dir):
        if revision in (None, record.asked) or _is_commit(revision, record.revision):
            path = snapshot_path(record.id, record.revision)
            if all(file_size(path / file.path) == file.bytes for file in record.files):
                return LocalModel(path, record.id, record.revision, record.licence)
    shared = _of_other_programs(id_or_dir, revision)
    if shared:
        return shared
    command = f"luthier get {id_or_dir}" + (f" --revision {revision}" if revision else "")
    hints = [
        did_you_mean(id_or_dir, known),
        f"`{command}` fetches it" + (" once there is a network" if offline or offline_asked() else ""),
        "or give the path of a folder with a saved model",
    ]
    raise ModelNotFound(
        f"{id_or_dir}{f' at revision {revision}' if revision else ''} is not on this machine",
        hint="; ".join(hint for hint in hints if hint),
    )


class _Counter:
    """Adds up the bytes of all threads for one progress, and stops them."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self.progress, self.done, self.stopped = total, progress, 0, False
        self.lock = threading.Lock()

    def add(self, count: int) -> None:
        if self.stopped:
            raise _Stopped
        with self.lock:
            self.done += count
            if self.progress:
                self.progress(min(self.done, self.total), self.total)

    def bar(self) -> Any:
        """A class that huggingface_hub takes for a progress bar."""
        counter = self

        class Bar:
            def __init__(self, *_: object, initial: int = 0, **__: object) -> None:
                counter.add(initial)

            def __enter__(self) -> Bar:
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def update(self, count: float | None = 1) -> None:
                counter.add(int(count or 0))

            def __getattr__(self, _: str) -> Any:
                return lambda *_, **__: None

        return Bar


class _Stopped(Exception):
    """Another thread failed or the user stopped."""


def _fetch(model: RemoteModel, file: RemoteFile, counter: _Counter) -> None:
    from huggingface_hub import hf_hub_download

    if file_size(snapshot_path(model.id, model.revision) / file.path) == file.bytes:
        counter.add(file.bytes)
        return
    if file.sha256 and file.bytes <= _LARGEST_PLAIN:
        _fetch_large(model, file, file.sha256, counter)
    # Fetches a small file; links a large one, whose content it finds in place.
    hf_hub_download(
        model.id,
        file.path,
        revision=model.revision,
        cache_dir=hub_cache(),
        endpoint=endpoint(),
        library_name="luthier",
        library_version=own_version(),
        tqdm_class=counter.bar(),
    )


def _fetch_large(model: RemoteModel, file: RemoteFile, sha256: str, counter: _Counter) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    blob = blob_path(model.id, sha256)
    if blob.exists():
        counter.add(file.bytes)
        return
    blob.parent.mkdir(parents=True, exist_ok=True)
    part = part_path(model.id, sha256)
    if part.exists() and part.stat().st_size > file.bytes:
        part.unlink()
    before = part.stat().st_size if part.exists() else 0
    if before == file.bytes:
        counter.add(before)
    url = hf_hub_url(model.id, file.path, revision=model.revision, endpoint=endpoint())
    headers = build_hf_headers(library_name="luthier", library_version=own_version())
    try:
        with part.open("ab") as stream:
            http_get(
                url,
                stream,
                resume_size=before,
                headers=headers,
                expected_size=file.bytes,
                displayed_filename=file.path,
                tqdm_class=counter.bar(),
            )
    except OSError as error:
        if error.errno is not None or getattr(error, "response", None) is not None:
            raise
        # huggingface_hub's word for a file that came short
        raise Unreachable(
            f"the transfer of {file.path} broke off: {error}",
            hint="run the same command again: it goes on from there",
        ) from error
    if file_sha256(part) != sha256:
        part.unlink()
        raise Unreachable(
            f"{file.path} of {model.id} did not arrive as the Hub describes it (another SHA-256)",
            hint="it was thrown away; run the same command again, or try another mirror (HF_ENDPOINT)",
        )
    part.replace(blob)


def _is_commit(asked: str | None, commit: str) -> bool:
    return bool(asked and _COMMIT.fullmatch(asked) and commit.startswith(asked))


def _local_folder(folder: Path) -> LocalModel:
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        raise FileProblem(
            "this folder holds an adapter, not a model" if adapter else "this folder holds no config.json",
            file=folder,
            hint="give the base model's folder or id, or an export that holds merged weights"
            if adapter
            else "a saved model has config.json, weights in safetensors and the tokenizer's files",
        )
    return LocalModel(folder.resolve(), folder.resolve().name, None, _licence_of(folder))


def _of_other_programs(model_id: str, revision: str | None) -> LocalModel | None:
    """A complete snapshot that another program put into the Hub's cache."""
    base = hub_cache() / folder_name(model_id)
    ref = base / "refs" / (revision or "main")
    commits = [path.name for path in (base / "snapshots").glob("*") if _is_commit(revision, path.name)]
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else next(iter(commits), None)
    path = snapshot_path(model_id, commit) if commit else None
    if path is None or not (path / "config.json").is_file() or not _complete(path):
        return None
    return LocalModel(path, model_id, commit, _licence_of(path))


def _complete(folder: Path) -> bool:
    """Whether a snapshot has weights, and all parts of them that its index names."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    chosen = needed_files(names)
    for name in chosen:
        if name.endswith(".index.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                return set(json.loads((folder / name).read_text())["weight_map"].values()) <= set(names)
            return False
    return bool(chosen)


def _licence_of(folder: Path) -> str | None:
    """The licence that a model card beside the weights names."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    from huggingface_hub import ModelCard

    with contextlib.suppress(ValueError, OSError):  # a card that cannot be read names no licence
        licence = ModelCard.load(card).data.to_dict().get("license")
        return str(licence) if licence else None
    return None
