"""Digests of what was written, and text that appears whole or not at all."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from luthier.errors import FileProblem
from luthier.files import file_sha256, write_text
from luthier.schema.results import Artifact, ParityCheck

CHECKSUMS = "SHA256SUMS"
PAPERS = re.compile(
    r"^(licen[cs]e|copying|notice|use_policy|acceptable_use|attribution|gemma_prohibited)[\w.-]*$", re.I
)
"""Names under which models carry their terms."""


def shipped_files(folder: Path) -> list[Path]:
    """Files of a folder that are part of what is shipped, sorted: no hidden ones, no checksums."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    return sorted(
        path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def folder_digest(folder: Path, *, papers: bool = True) -> str:
    """SHA-256 over the sorted names and digests of a folder's files.

    papers: whether card, licence and notices count; without them it is the digest of the model itself.
    """
    total = hashlib.sha256()
    for path in shipped_files(folder):
        if papers or not (path.suffix == ".md" or PAPERS.match(path.name)):
            total.update(f"{file_sha256(path)}  {path.relative_to(folder).as_posix()}\n".encode())
    return total.hexdigest()


def write_checksums(folder: Path) -> Path:
    """Write SHA256SUMS over a folder's files; ``sha256sum -c SHA256SUMS`` checks them."""
    lines = [f"{file_sha256(path)}  {path.relative_to(folder).as_posix()}" for path in shipped_files(folder)]
    return write_text(folder / CHECKSUMS, "\n".join(lines) + "\n")


def artifact_of(
    path: Path,
    kind: str,
    *,
    relative_to: Path,
    predicted_bytes: int | None = None,
    parity: ParityCheck | None = None,
    notes: tuple[str, ...] = (),
    sha256: str | None = None,
) -> Artifact:
    """Describe a written file or folder. sha256: its digest, where it is known already.

    relative_to: the run directory, that paths are kept relative to. Errors: FileProblem when the path is
    missing or lies outside it.
    """
    if not path.exists():
        raise FileProblem("was not written", file=path)
    try:
        relative = path.resolve().relative_to(relative_to.resolve()).as_posix()
    except ValueError:
        raise FileProblem(f"lies outside {relative_to}", file=path) from None
    size = path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in shipped_files(path))
    digest = sha256 or (file_sha256(path) if path.is_file() else folder_digest(path))
    return Artifact(
        kind=kind,
        path=relative,
        bytes=size,
        sha256=digest,
        predicted_bytes=predicted_bytes,
        parity=parity,
        notes=notes,
    )
