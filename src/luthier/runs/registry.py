"""Tuned models by name and version: what is in production, what was before, and where each came from.

A version is one file in its run's directory (``registered/NAME.json``); the registry's folder holds an
index that can be rebuilt from the runs, and for each name the log of its aliases, which is the only
thing that the runs do not know.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from luthier.errors import FileProblem, UsageError, did_you_mean
from luthier.files import file_sha256, write_text
from luthier.runs.directory import RunDirectory, find_run, list_runs, runs_root
from luthier.runs.stages import load_artifacts, load_comparisons
from luthier.schema.registry import AliasChange, Score, Version

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,99}")


def registry_root() -> Path:
    """Where the index stands: ``LUTHIER_REGISTRY``, else ``registry`` beside the runs."""
    own = os.environ.get("LUTHIER_REGISTRY")
    return Path(own).expanduser().absolute() if own else runs_root().parent / "registry"


@contextmanager
def _locked() -> Iterator[Path]:
    root = registry_root()
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock", timeout=30):
        yield root


def names() -> list[str]:
    """Registered names, sorted."""
    return sorted(path.name for path in registry_root().glob("*") if (path / "versions").is_dir())


def versions(name: str) -> list[Version]:
    """All versions of a name, newest first. Errors: UsageError with the nearest name."""
    folder = registry_root() / name / "versions"
    if not folder.is_dir():
        near = did_you_mean(name, names())
        raise UsageError(f"no model is registered as {name!r}", hint=near or "see `luthier registry`")
    found = [Version.model_validate_json(path.read_text()) for path in folder.glob("*.json")]
    return sorted(found, key=lambda one: one.version, reverse=True)


def aliases(name: str) -> dict[str, int]:
    """Alias -> version, as the log leaves them."""
    found: dict[str, int] = {}
    for change in history(name):
        if change.version is None:
            found.pop(change.alias, None)
        else:
            found[change.alias] = change.version
    return found


def history(name: str) -> list[AliasChange]:
    """Every change of an alias, oldest first."""
    path = registry_root() / name / "aliases.jsonl"
    if not path.is_file():
        return []
    return [AliasChange.model_validate_json(line) for line in path.read_text().splitlines() if line.strip()]


def find(reference: str) -> Version:
    """``name`` (the newest), ``name:3`` or ``name:production``. Errors: UsageError with what there is."""
    name, _, wanted = reference.partition(":")
    known = versions(name)
    if not wanted:
        return known[0]
    number = int(wanted) if wanted.isdigit() else aliases(name).get(wanted)
    for one in known:
        if one.version == number:
            return one
    there = ", ".join([*(str(one.version) for one in known), *aliases(name)])
    raise UsageError(f"{name} has no version {wanted!r}", hint=f"it has {there}")


def run_of(reference: str) -> RunDirectory:
    """The run of a registered version. Errors: UsageError, FileProblem where the run is gone."""
    found = find(reference)
    if not (Path(found.path) / "status.json").is_file():
        raise FileProblem(
            f"the run of {found.id} is no longer there",
            file=found.path,
            hint="bring it back, or register another: luthier registry add RUN",
        )
    return RunDirectory(Path(found.path))


def resolve(name: str) -> RunDirectory:
    """A run by whatever names it: ``NAME:VERSION`` or ``NAME:ALIAS`` of the registry, else as `find_run`."""
    model, colon, _ = name.partition(":")
    if colon and (registry_root() / model / "versions").is_dir():
        return run_of(name)
    return find_run(name)


def add(run: RunDirectory, *, name: str | None = None, note: str = "") -> Version:
    """Register a finished run as the next version of a name; the same run twice gives the same version.

    Errors: UsageError for a run without weights to use, or a name that is none.
    """
    recipe = run.recipe
    name = name or recipe.name or run.id
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be a model's name", hint="use letters, digits, . _ and -")
    artifacts = load_artifacts(run)
    if not artifacts:
        raise UsageError(
            f"{run.id} has written nothing that could be used", hint=f"luthier export {run.id} --merged"
        )
    facts = run.stage_values("model") or {}
    data = run.stage_values("data") or {}
    with _locked() as root:
        folder = root / name / "versions"
        folder.mkdir(parents=True, exist_ok=True)
        known = versions(name)
        same = [one for one in known if one.path == str(run.path)]
        if same and same[0].artifacts == tuple(artifacts):
            return same[0]
        made = Version(
            name=name,
            # Numbers of forgotten versions are not given again: somebody may still name them.
            version=max((int(path.stem) for path in folder.iterdir()), default=0) + 1,
            created=time.time(),
            run=run.id,
            path=str(run.path),
            task=recipe.task,
            base_model=recipe.model.id,
            base_revision=facts.get("revision") or recipe.model.revision,
            licence=facts.get("licence"),
            method=recipe.method.name,
            data=str(data.get("version") or data.get("digest") or ""),
            recipe=file_sha256(run.path / "recipe.yaml"),
            scores={
                c.split: Score(
                    metric=c.primary, baseline=c.main.baseline, tuned=c.main.tuned, verdict=c.verdict
                )
                for c in load_comparisons(run)
            },
            artifacts=tuple(artifacts),
            note=note,
        )
        text = made.model_dump_json(indent=1) + "\n"
        (run.path / "registered").mkdir(exist_ok=True)
        write_text(run.path / "registered" / f"{name}-{made.version}.json", text)
        write_text(folder / f"{made.version}.json", text)
    return made


def promote(reference: str, alias: str) -> AliasChange:
    """Let an alias name a version. Errors: UsageError."""
    if not ALIAS.fullmatch(alias):
        raise UsageError(f"{alias!r} cannot be an alias", hint="begin with a letter: production, staging")
    found = find(reference)
    return _change(found.name, alias, found.version)


def rollback(name: str, alias: str) -> AliasChange:
    """Let an alias name what it named before. Errors: UsageError where there is nothing before."""
    return _change(name, alias, before(name, alias))


def before(name: str, alias: str) -> int:
    """The version that an alias would name after a roll back. Errors: UsageError where there is none."""
    known = {one.version for one in versions(name)}
    trail: list[int | None] = [None]
    for change in history(name):
        if change.alias != alias:
            continue
        if len(trail) > 1 and change.version == trail[-2]:
            trail.pop()  # an earlier rollback: what it left is not "before" any more
        else:
            trail.append(change.version)
    found = next((version for version in reversed(trail[:-1]) if version in known), None)
    if len(trail) == 1 or found is None:
        raise UsageError(
            f"{name}:{alias} named nothing before", hint=f"luthier registry promote {name}:VERSION {alias}"
        )
    return found


def drop_alias(name: str, alias: str) -> AliasChange:
    """Take an alias away. Errors: UsageError."""
    if alias not in aliases(name):
        raise UsageError(f"{name} has no alias {alias!r}", hint=", ".join(aliases(name)) or "it has none")
    return _change(name, alias, None)


def _change(name: str, alias: str, version: int | None) -> AliasChange:
    with _locked() as root:
        change = AliasChange(at=time.time(), alias=alias, version=version, before=aliases(name).get(alias))
        with (root / name / "aliases.jsonl").open("ab", buffering=0) as file:
            file.write((change.model_dump_json() + "\n").encode())
    return change


def remove(reference: str) -> Version:
    """Forget a version; its run stays. Errors: UsageError while an alias names it."""
    found = find(reference)
    held = [alias for alias, version in aliases(found.name).items() if version == found.version]
    if held:
        raise UsageError(
            f"{found.id} is {' and '.join(held)}",
            hint=f"promote another version first, or: luthier registry unalias {found.name} {held[0]}",
        )
    with _locked() as root:
        index = root / found.name / "versions" / f"{found.version}.json"
        index.rename(index.with_suffix(".forgotten"))
        (Path(found.path) / "registered" / f"{found.name}-{found.version}.json").unlink(missing_ok=True)
    return found


def registered_as(run: RunDirectory) -> list[str]:
    """Names and versions under which a run is registered."""
    found = [json.loads(path.read_text()) for path in sorted((run.path / "registered").glob("*.json"))]
    return [f"{one['name']}:{one['version']}" for one in found]


def rebuild() -> list[Version]:
    """Write the index anew from the runs; the logs of aliases stay. Returns all versions found."""
    found: list[Version] = []
    with _locked() as root:
        for run in list_runs():
            for path in sorted((run.path / "registered").glob("*.json")):
                one = Version.model_validate_json(path.read_text())
                # The run may have moved with its root.
                found.append(one.model_copy(update={"path": str(run.path), "run": run.id}))
        for name in {one.name for one in found}:
            folder = root / name / "versions"
            folder.mkdir(parents=True, exist_ok=True)
            kept = {f"{one.version}.json" for one in found if one.name == name}
            for path in folder.glob("*.json"):
                if path.name not in kept:
                    path.unlink()
        for one in found:
            write_text(
                root / one.name / "versions" / f"{one.version}.json", one.model_dump_json(indent=1) + "\n"
            )
    return found


def differences(first: Version, second: Version) -> dict[str, tuple[str, str]]:
    """What differs between two versions: field, or recipe key -> both values in words."""
    found: dict[str, tuple[str, str]] = {}
    for field in ("task", "base_model", "base_revision", "licence", "method", "data"):
        a, b = str(getattr(first, field)), str(getattr(second, field))
        if a != b:
            found[field] = (a, b)
    sides = []
    for one in (first, second):
        path = Path(one.path)
        sides.append(_flat(RunDirectory(path).recipe.model_dump(mode="json")) if path.is_dir() else {})
    for key in sorted(set(sides[0]) | set(sides[1])):
        a, b = (str(side.get(key)) for side in sides)
        if a != b and not key.startswith("sources."):
            found[key] = (a, b)
    for split in sorted(set(first.scores) | set(second.scores)):
        a, b = (_score(one, split) for one in (first, second))
        if a != b:
            found[f"scores.{split}"] = (a, b)
    return found


def _score(one: Version, split: str) -> str:
    score = one.scores.get(split)
    if score is None:
        return "not judged"
    tuned = score.tuned
    return f"{score.metric} {tuned.value:.4g} [{tuned.low:.4g}, {tuned.high:.4g}] ({score.verdict})"


def _flat(values: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(values, dict):
        return {prefix: values}
    found: dict[str, object] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found
