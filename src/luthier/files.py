"""Files that are whole or not there, and the folder for what can be fetched or made again."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from luthier import words

readable = words.readable
"""Bytes in words, for those who write files."""
UNFINISHED = ".unfinished-"
"""Prefix of files and folders that are being written: never read, and safe to remove when nobody writes."""


def cache_dir() -> Path:
    """Where Luthier keeps what it can fetch or make again.

    ``LUTHIER_CACHE``, else ``XDG_CACHE_HOME/luthier``, else ``~/.cache/luthier``. Not created here.
    """
    own = os.environ.get("LUTHIER_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache").absolute() / "luthier"


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """A name beside ``target`` to write to; it takes its place when the block ends well, else it goes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f"{UNFINISHED}{target.name}.", dir=target.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.chmod(0o644)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Replace a file's text so that a reader sees the old or the new, never a part."""
    with replaced(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")
    return path


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
