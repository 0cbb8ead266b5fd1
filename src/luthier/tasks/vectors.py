"""Texts as a loaded embedder reads them: settings, batches and encoders for tasks, answers and mining."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from luthier.catalog.index import all_models
from luthier.errors import RecipeError
from luthier.models.embed import Batches, DenseLayers, TorchEmbedder, has_segments, load_backbone, width_of
from luthier.models.vector_settings import Pooling, VectorSettings, read_vector_settings
from luthier.schema.recipe import Dtype, SimilarityChoice
from luthier.schema.rows import Role
from luthier.tasks.encoded import Encoded, EncodedBatch, encode, pad
from luthier.tasks.planned import by_length

if TYPE_CHECKING:
    from luthier.data.tokenizer import FileTokenizer

TOKENS_AT_ONCE = 16_384
"""Tokens, padding counted, that go through the model at once while encoding."""


def settings_of(folder: Path, model_id: str, choice: SimilarityChoice | None = None) -> VectorSettings:
    """How this model makes vectors: its own files, else the catalogue's prompts; the recipe's word wins."""
    known = {name: card.prompts for card in all_models() for name in (card.id, *card.aliases) if card.prompts}
    found = read_vector_settings(folder, prompts=known.get(model_id))
    if choice is None:
        return found
    said = {"query": choice.query_prompt, "document": choice.document_prompt}
    prompts = {**found.prompts, **{name: text for name, text in said.items() if text is not None}}
    return replace(
        found,
        pooling=found.pooling if choice.pooling is None else (cast("Pooling", choice.pooling),),
        normalize=found.normalize if choice.normalize is None else choice.normalize,
        prompts=prompts,
    )


def check_dimensions(dimensions: Sequence[int], settings: VectorSettings, model: Any) -> tuple[int, ...]:
    """Dimensions to train besides the whole vector, longest first. Raises RecipeError for impossible ones."""
    width = width_of(model, settings)
    if wrong := [size for size in dimensions if not 0 < size <= width]:
        raise RecipeError(
            f"similarity.dimensions: {wrong[0]} cannot be cut from vectors of {width} numbers",
            hint=f"use sizes from 1 to {width - 1}; {width} itself is always trained",
        )
    return tuple(sorted({*dimensions, width}, reverse=True)) if dimensions else ()


@dataclass(frozen=True)
class Reader:
    """A tokenizer with what the model's settings ask of it."""

    tokenizer: FileTokenizer
    settings: VectorSettings
    segments: bool
    device: torch.device

    def encode(self, texts: Sequence[str], *, most: int | None = None) -> list[Encoded]:
        """Texts, prompts among them, cut to the longest that the model (or most) allows."""
        limits = [limit for limit in (most, self.settings.max_length) if limit is not None]
        lower = [text.lower() for text in texts] if self.settings.lower_case else texts
        return encode(lower, self.tokenizer, most=min(limits, default=None))

    def batches(self, tokens: int = TOKENS_AT_ONCE) -> Batches:
        """Texts to padded batches of like length on the device."""

        def make(texts: Sequence[str]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
            encoded = self.encode(texts)
            for group in by_length([len(one) for one in encoded], tokens):
                batch = self.pad([encoded[i] for i in group], torch.zeros(len(group)))
                yield group, batch.to(self.device).inputs

        return make

    def pad(self, encoded: Sequence[Encoded], labels: Tensor) -> EncodedBatch:
        return pad(encoded, labels, pad_id=self.tokenizer.pad_id, segments=self.segments)


def embedder_of(
    model: Any,
    reader: Reader,
    *,
    label: str,
    weights_digest: str,
    dense: DenseLayers | None = None,
    role: Role | None = None,
    dims: int | None = None,
    scope: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> TorchEmbedder:
    """An encoder of texts over a loaded model."""
    return TorchEmbedder(
        model,
        reader.settings,
        reader.batches(),
        label=label,
        weights_digest=weights_digest,
        dense=dense,
        role=role,
        dims=dims,
        scope=scope,
    )


def load_embedder(
    folder: Path,
    tokenizer: FileTokenizer,
    *,
    model_id: str,
    dtype: Dtype = "float32",
    device: str = "cpu",
    role: Role | None = None,
    dims: int | None = None,
    trust_remote_code: bool = False,
) -> TorchEmbedder:
    """A saved model, tuned or not, ready to encode."""
    from luthier.models.load import weights_digest

    settings = settings_of(folder, model_id)
    model = load_backbone(folder, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    dense = DenseLayers(settings.dense, folder).to(device) if settings.dense else None
    reader = Reader(tokenizer, settings, has_segments(model), torch.device(device))
    return embedder_of(
        model,
        reader,
        label=model_id,
        weights_digest=weights_digest(folder),
        dense=dense,
        role=role,
        dims=dims,
    )
