"""What of a run goes to the Hub, into which repositories, and under which name."""

from __future__ import annotations

from pathlib import Path

from luthier.errors import UsageError
from luthier.exporting.files import PAPERS, shipped_files
from luthier.exporting.licence_bundle import permitted_name
from luthier.hub.upload import Upload, check_repo_id
from luthier.planning.licence_gate import hold_to_licence, terms_of
from luthier.runs.directory import RunDirectory
from luthier.runs.stages import load_artifacts, load_comparisons

SUFFIX = {"merged": "", "adapter": "-adapter", "gguf": "-GGUF"}
"""Kind of weights -> what its repository's name ends in."""


def plan_push(run: RunDirectory, target: str, kinds: tuple[str, ...] = ()) -> list[Upload]:
    """One repository for each kind of weights that the run has written (or of those asked for).

    The licence's naming duty is carried out by refusing another name. Errors: UsageError for a name
    that is none or that the licence does not allow, or nothing to send; LicenceBroken where a rule of
    the recipe would be.
    """
    repo = check_repo_id(target)
    named = (run.stage_values("model") or {}).get("licence")
    hold_to_licence(run.recipe, "exported", named=named)
    terms, _ = terms_of(run.recipe, named)
    owner, _, name = repo.partition("/")
    allowed = permitted_name(name, terms)
    if allowed != name:
        raise UsageError(
            f"the licence of {run.recipe.model.id} asks for a name that begins otherwise than {name}",
            hint=f"luthier push {run.id} hub:{owner}/{allowed}",
        )
    for kind in kinds:
        if kind not in SUFFIX:
            raise UsageError(f"{kind!r} cannot be sent", hint=f"use {', '.join(SUFFIX)}")
    found: list[Upload] = []
    there = {a.kind.partition(":")[0]: a for a in load_artifacts(run)}
    for kind in kinds or tuple(SUFFIX):
        if kind not in there:
            if kinds:
                raise UsageError(f"{run.id} has no {kind}", hint=f"luthier export {run.id} --{kind}")
            continue
        found.append(_upload(run, kind, repo + (SUFFIX[kind] if len(kinds) != 1 else "")))
    if not found:
        raise UsageError(
            f"{run.id} has written nothing that could be sent", hint=f"luthier export {run.id} --merged"
        )
    return found


def _upload(run: RunDirectory, kind: str, repo: str) -> Upload:
    out = run.path / "artifacts"
    folder = out if kind == "gguf" else out / kind
    if kind == "gguf":
        files = [
            path
            for path in shipped_files(out)
            if path.parent == out
            and (path.suffix == ".gguf" or path.name == "README.md" or PAPERS.match(path.name))
        ]
    else:
        files = shipped_files(folder)
    return Upload(repo, kind, folder, tuple((_name(path, folder), path.stat().st_size) for path in files))


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def commit_message(run: RunDirectory) -> str:
    """What the commit says: the run, its base and its verdict."""
    verdicts = ", ".join(f"{c.split}: {c.verdict}" for c in load_comparisons(run))
    return f"{run.recipe.model.id} tuned with {run.recipe.method.name} ({verdicts or 'not judged'})"
