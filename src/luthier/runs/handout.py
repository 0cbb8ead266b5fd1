"""What a run has exported, in a folder of somebody's choice."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from luthier.errors import DoesNotFit, FileProblem, UsageError
from luthier.exporting.files import PAPERS, shipped_files, write_checksums
from luthier.files import UNFINISHED, readable
from luthier.runs.directory import RunDirectory
from luthier.schema.results import Artifact
from luthier.serving.lmstudio import link_or_copy

CARD = "README.md"


def kinds_of(*, adapter: bool, merged: bool, onnx: bool, gguf: Sequence[str]) -> list[str]:
    """Kinds of artifacts by what was asked of an export."""
    folders = (("adapter", adapter), ("merged", merged), ("onnx", onnx))
    return [*(kind for kind, wanted in folders if wanted), *(f"gguf:{name}" for name in gguf)]


def check_place(to: Path) -> None:
    """Refuse a folder with something in it. Errors: UsageError."""
    if to.is_file() or (to.is_dir() and any(to.iterdir())):
        raise UsageError(f"{to} is there already and holds something", hint="name a new or an empty folder")


def hand_out(run: RunDirectory, artifacts: Sequence[Artifact], to: Path) -> Path:
    """Put artifacts with card, licence and SHA256SUMS into a folder: whole or not at all.

    Files on the same disk are linked, not copied. Errors: UsageError for a folder with something in it,
    DoesNotFit, FileProblem for a file that has gone.
    """
    check_place(to)
    to.parent.mkdir(parents=True, exist_ok=True)
    need = sum(one.bytes for one in artifacts)
    free = shutil.disk_usage(to.parent).free
    if need > free and to.parent.stat().st_dev != run.path.stat().st_dev:
        raise DoesNotFit(
            f"{readable(need)} are to be copied and {readable(free)} are free", file=to, hint="another disk"
        )
    scratch = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=to.parent))
    try:
        for one in artifacts:
            source = run.path / one.path
            if not source.exists():
                hint = f"luthier export {run.id} makes it again"
                raise FileProblem("has gone since it was exported", file=source, hint=hint)
            for path in shipped_files(source) if source.is_dir() else [source]:
                target = scratch / path.relative_to(source.parent)
                target.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(path, target)
        if any((run.path / one.path).is_file() for one in artifacts):  # folders bring their own
            for path in sorted((run.path / "artifacts").iterdir()):
                if path.is_file() and (PAPERS.match(path.name) or path.name == CARD):
                    shutil.copyfile(path, scratch / path.name)
        write_checksums(scratch)
        scratch.chmod(0o755)
        if to.is_dir():
            to.rmdir()
        scratch.rename(to)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return to
