"""Where things lie in the Hub's own cache: ``models--owner--name/{blobs,snapshots/<commit>,refs}``."""

from __future__ import annotations

import os
from pathlib import Path

PART = ".luthier.incomplete"
"""Ending of a large file that has not fully arrived."""


def hub_cache() -> Path:
    """The folder of the Hub's cache, shared with other programs (``HF_HUB_CACHE``, ``HF_HOME``)."""
    from huggingface_hub import constants

    return Path(os.environ.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE).expanduser().absolute()


def folder_name(model_id: str) -> str:
    """The Hub's name for a model's folder in its cache."""
    return "--".join(["models", *model_id.split("/")])


def snapshot_path(model_id: str, revision: str) -> Path:
    """The folder that holds a model at one commit."""
    return hub_cache() / folder_name(model_id) / "snapshots" / revision


def blob_path(model_id: str, sha256: str) -> Path:
    """The content of a large file, which snapshots link to."""
    return hub_cache() / folder_name(model_id) / "blobs" / sha256


def part_path(model_id: str, sha256: str) -> Path:
    """What has arrived of a large file."""
    return hub_cache() / folder_name(model_id) / "blobs" / f"{sha256}{PART}"


def file_size(path: Path) -> int | None:
    """Bytes of a file, following links; None where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def arrived_bytes(model_id: str, revision: str, name: str, size: int, sha256: str | None) -> int:
    """How much of one file of a model is on disk, in place or in part."""
    if file_size(snapshot_path(model_id, revision) / name) == size:
        return size
    if sha256 is None:
        return 0
    found = file_size(blob_path(model_id, sha256)) or file_size(part_path(model_id, sha256)) or 0
    return min(found, size)
