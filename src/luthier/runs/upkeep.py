"""Remove, pack and thin runs; what is deployed, in production, served or protected stays."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import DoesNotFit, UsageError
from luthier.files import readable, write_text
from luthier.runs.deploying import list_deployments
from luthier.runs.directory import RunDirectory
from luthier.runs.process import ACTIVE, current_state
from luthier.runs.registry import aliases, registered_as
from luthier.runs.servers import UP, ServerDirectory, list_servers
from luthier.schema.results import TrainResult
from luthier.training.manifest import CHECKPOINTS, PART, step_name, steps

MARK = "protected.txt"
"""A file of this name in a run's folder keeps the run; its text says why."""


def bytes_of(path: Path) -> int:
    """Bytes of all files below a folder, each once however often it is linked there."""
    seen = {(s.st_dev, s.st_ino): s.st_size for p in path.rglob("*") if p.is_file() for s in [p.lstat()]}
    return sum(seen.values())


def kept_by(run: RunDirectory) -> list[str]:
    """Why a run may not be touched: what is made of it and in use, or a mark. Empty where it may."""
    return [why for why, _ in _holds(run)]


def _holds(run: RunDirectory) -> Iterator[tuple[str, str]]:
    """What holds a run, each with what would let it go."""
    for one in list_deployments():
        if one.run == run.id:
            yield f"it is deployed as {one.name}", f"luthier deployments rm {one.name}"
    for version in registered_as(run):
        name, _, number = version.rpartition(":")
        for alias, named in aliases(name).items():
            if str(named) == number:
                yield f"it is {name}:{alias}", f"luthier registry unalias {name} {alias}"
    for server in list_servers():
        if server.status.state in UP and _answers_with(server, run):
            yield f"the server {server.id} answers with it", f"stop {server.id}"
    mark = run.path / MARK
    if mark.is_file():
        text = mark.read_text(encoding="utf-8").strip()
        why = f"it is protected ({text})" if text else "it is protected"
        yield why, f"luthier runs protect {run.id} --off"


def _answers_with(server: ServerDirectory, run: RunDirectory) -> bool:
    """Whether a server was asked for a run, by its name, an alias or a path, or says that it holds it."""
    if any(model.facts.get("run") == run.id for model in server.status.models):
        return True
    for words in (*server.wish.models, *server.wish.adapters):
        target = words.rpartition("=")[2]
        if target == run.id or Path(target).expanduser().resolve().is_relative_to(run.path.resolve()):
            return True
    return False


def protect(run: RunDirectory, why: str) -> None:
    """Mark a run so that it is kept until the mark is taken back."""
    write_text(run.path / MARK, why.strip() + "\n")


def unprotect(run: RunDirectory) -> None:
    """Take the mark back. Errors: UsageError where there is none."""
    if not (run.path / MARK).is_file():
        raise UsageError(f"{run.id} is not marked as protected")
    (run.path / MARK).unlink()


def demand_free(run: RunDirectory) -> None:
    """Errors: UsageError where a run works, is in use or is protected."""
    if current_state(run) in ACTIVE:
        raise UsageError(f"{run.id} is running", hint=f"stop it first: luthier runs stop {run.id}")
    if held := list(_holds(run)):
        raise UsageError(
            f"{run.id} stays: {'; '.join(why for why, _ in held)}",
            hint=f"first: {'; '.join(way for _, way in held)}",
        )


def remove(run: RunDirectory) -> int:
    """Delete a run's folder; how many bytes that frees. Errors: as `demand_free`."""
    demand_free(run)
    held = bytes_of(run.path)
    # Renamed first: what is half deleted must not look like a run.
    dead = run.path.with_name(run.path.name + PART)
    run.path.rename(dead)
    shutil.rmtree(dead)
    return held


def archive(run: RunDirectory, *, checkpoints: bool = False) -> Path:
    """Pack a run into ``archive/ID.tar.gz`` beside the runs, read it back, and delete the folder.

    checkpoints: pack these too; else what remains is what a person reads and what was shipped.
    Errors: as `demand_free`; DoesNotFit where the disk is too full for the file.
    """
    demand_free(run)
    target = run.path.parent / "archive" / f"{run.id}.tar.gz"
    if target.exists():
        raise UsageError("there is such an archive already", hint="move it away", file=target)
    needed = sum(p.stat().st_size for p in _packed(run, checkpoints))
    target.parent.mkdir(exist_ok=True)
    if shutil.disk_usage(target.parent).free < needed:
        raise DoesNotFit(
            f"packing {run.id} takes up to {readable(needed)}, which the disk does not have",
            file=target.parent,
        )
    part = target.with_name(target.name + PART)
    try:
        with tarfile.open(part, "w:gz", compresslevel=1) as packed:
            for path in _packed(run, checkpoints):
                packed.add(path, arcname=Path(run.id) / path.relative_to(run.path), recursive=False)
        _read_back(part, run, checkpoints)
        part.rename(target)
    finally:
        part.unlink(missing_ok=True)
    remove(run)
    return target


def _packed(run: RunDirectory, checkpoints: bool) -> list[Path]:
    files = (p for p in sorted(run.path.rglob("*")) if p.is_file())
    return [p for p in files if checkpoints or p.relative_to(run.path).parts[0] != CHECKPOINTS]


def _read_back(part: Path, run: RunDirectory, checkpoints: bool) -> None:
    """The archive holds every file with its size, and can be read to its end."""
    with tarfile.open(part, "r:gz") as packed:
        sizes = {member.name: member.size for member in packed.getmembers()}
    wanted = {
        str(Path(run.id) / p.relative_to(run.path)): p.stat().st_size for p in _packed(run, checkpoints)
    }
    assert sizes == wanted, "what was packed is what is there"


@dataclass(frozen=True)
class Pruned:
    """Checkpoints of a run that may go. Bytes."""

    run: RunDirectory
    folders: tuple[Path, ...]
    bytes: int


def prunable(runs: Iterable[RunDirectory], *, selected_only: bool = False) -> list[Pruned]:
    """Checkpoints of finished runs besides the selected and the last one, and folders left half written.

    selected_only: the last one may go too; the run can then not be extended. Runs that work, that could
    go on, that are in use or protected are left out.
    """
    found = []
    for run in runs:
        result = run.stage("train", TrainResult)
        if result is None or current_state(run) != "done" or kept_by(run):
            continue
        folder = run.path / CHECKPOINTS
        there = steps(folder)
        kept = {Path(result.selected_checkpoint).name}
        if there and not selected_only:
            kept.add(step_name(there[-1]))
        gone = [folder / step_name(step) for step in there if step_name(step) not in kept]
        gone += sorted(folder.glob(f"step-*{PART}"))
        if gone:
            found.append(Pruned(run, tuple(gone), sum(bytes_of(path) for path in gone)))
    return found


def prune(found: Pruned) -> None:
    """Delete what `prunable` has found."""
    for path in found.folders:
        dead = path if path.name.endswith(PART) else path.with_name(path.name + PART)
        if dead != path:
            path.rename(dead)
        shutil.rmtree(dead)
