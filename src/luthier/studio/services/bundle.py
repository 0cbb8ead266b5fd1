"""A run's small files in one archive."""

from __future__ import annotations

import io
import zipfile

from luthier.runs.directory import RunDirectory

LARGEST = 64_000_000
"""Bytes of one file that goes in whole; of a longer log or metrics file the end does."""
SUFFIXES = frozenset({".json", ".jsonl", ".yaml", ".txt", ".html", ".md"})


def bundle(run: RunDirectory, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Recipe, status, metrics, events, results, log and report; no weights, no checkpoints."""
    into = io.BytesIO()
    with zipfile.ZipFile(into, "w", compression) as archive:
        for path in sorted(run.path.iterdir()):
            if not path.is_file() or path.is_symlink() or path.suffix not in SUFFIXES:
                continue
            with path.open("rb") as file:
                size = path.stat().st_size
                file.seek(max(0, size - LARGEST))
                archive.writestr(f"{run.id}/{path.name}", file.read())
    return into.getvalue()
