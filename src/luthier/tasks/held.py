"""What a trained model that writes no text answers to held-out inputs: the measure of its exports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.catalog.purposes import spec_of
from luthier.data.inputs import Input, inputs_of, texts_with_roles
from luthier.schema.onnx import OnnxAnswers
from luthier.schema.recipe import Dtype
from luthier.tasks.base import ModelTask
from luthier.tasks.classification import ClassificationTask
from luthier.tasks.encoded import Encoded, encode
from luthier.tasks.reranking import RerankingTask
from luthier.tasks.similarity import SimilarityTask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from luthier.schema.rows import Role


@dataclass(frozen=True)
class Held:
    """Held-out inputs, as the trained model reads them and what it answers.

    values: [inputs, dims] vectors, [inputs] scores or [inputs, labels] logits.
    """

    answers: OnnxAnswers
    inputs: tuple[Input, ...]
    roles: tuple[Role | None, ...]
    """embed: what each text is."""
    ids: tuple[tuple[int, ...], ...]
    """Token ids, prompts and special tokens among them."""
    values: NDArray[Any]
    dtype: Dtype
    """Type that the trained model computes in."""


def held_answers(task: ModelTask, run: Path, rows: Sequence[Any]) -> Held:
    """Ask the trained model once; the answers serve for every export. Inputs occur once each."""
    dtype: Dtype = task.recipe.model.dtype or "float32"
    encoded: list[Encoded]
    if isinstance(task, SimilarityTask):
        asked = list(dict.fromkeys(one for row in rows for one in texts_with_roles(row)))
        embedder = task.tuned_embedder(run)
        values = np.stack([embedder.encode([text], role=role)[0] for text, role in asked])
        encoded = task.reader.encode([task.settings.prompt(role) + text for text, role in asked])
        inputs: list[Input] = [text for text, _ in asked]
        return _held("embed", inputs, [role for _, role in asked], encoded, values, dtype)
    inputs = list(dict.fromkeys(one for row in rows for one in inputs_of(row, task.recipe.task)))
    roles: list[Role | None] = [None] * len(inputs)
    if isinstance(task, RerankingTask):
        pairs = [one for one in inputs if not isinstance(one, str)]
        scores = task.tuned_reranker(run).score(pairs)
        return _held("rerank", inputs, roles, task.reader.encode(pairs), scores, dtype)
    assert isinstance(task, ClassificationTask), f"{spec_of(task.recipe.task).purpose} writes text"
    logits, limit = task.tuned_logits(run, inputs)
    return _held("classify", inputs, roles, encode(inputs, task.tokenizer, most=limit), logits, dtype)


def _held(  # noqa: PLR0917
    answers: OnnxAnswers,
    inputs: Sequence[Input],
    roles: Sequence[Role | None],
    encoded: Sequence[Encoded],
    values: NDArray[Any],
    dtype: Dtype,
) -> Held:
    ids = tuple(tuple(one.ids) for one in encoded)
    return Held(answers, tuple(inputs), tuple(roles), ids, values, dtype)
