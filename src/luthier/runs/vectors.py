"""Vectors and scores by a saved or tuned model, computed in a process of its own: torch never loads here."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from luthier.catalog.index import model_card
from luthier.catalog.purposes import Answers
from luthier.errors import ModelNotFound
from luthier.runs.answer import ask, model_folder
from luthier.runs.model import Say, embedded_revision, obtain
from luthier.schema.recipe import ModelChoice
from luthier.schema.rows import Role

if TYPE_CHECKING:
    from numpy.typing import NDArray


def answering_model(name: str, answers: Answers, *, say: Say) -> tuple[Path, str]:
    """Folder and id of what a run, a folder or a model's name stands for.

    A name with an organisation (``org/model``) is a base model: on disk, in a package of the index or on
    the Hub. Errors: as `runs.answer.model_folder` and `runs.model.obtain`.
    """
    if name.count("/") == 1 and not Path(name).expanduser().exists():
        try:
            wheel = model_card(name).embedded
        except ModelNotFound:
            wheel = None
        revision = None if wheel is None else embedded_revision(wheel)
        found = obtain(ModelChoice(id=name, revision=revision), say=say)
        return found.path, name
    folder = model_folder(name, answers)
    return folder, folder.name


def vectors_of(
    folder: Path, texts: Sequence[str], *, model_id: str, role: Role | None = None, dims: int | None = None
) -> NDArray[np.float32]:
    """Vectors of texts in their order: [texts, dims] float32."""
    with tempfile.TemporaryDirectory(prefix="luthier-") as scratch:
        out = Path(scratch) / "vectors.npy"
        settings = {"out": str(out), "role": role, "dims": dims, "model_id": model_id}
        ask(folder, "embed", list(texts), settings=settings)
        found: NDArray[np.float32] = np.load(out)
        return found


def scores_of(folder: Path, query: str, documents: Sequence[str]) -> list[float]:
    """Relevance of each document for the query, in the order of the documents."""
    found = ask(folder, "rerank", [[query, document] for document in documents])
    return [float(one) for one in found]
