"""Rows side by side under a mask: encoders, and every purpose whose answer is not text."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from luthier.checks.trace.kernels import EFFICIENT
from luthier.errors import Unsupported
from luthier.models.lora import add_lora
from luthier.schema.estimate import TrainingShape
from luthier.schema.recipe import Full, Method
from luthier.sizing.padding import pieces_of
from luthier.training.contrastive import in_chunks


class _Dropout(torch.nn.Dropout):
    """CUDA's dropout: one kernel, which keeps a byte for each number."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Any shape, kept."""
        found: Tensor = torch.native_dropout(input, self.p, True)[0]
        return found


LABELS = 2
HEADS = ("classifier", "score")
"""Names of heads over labels, which are trained whole beside adapters."""


def padded_model(config: Any, method: Method, dtype: torch.dtype, shape: TrainingShape) -> Any:
    """The model on meta, adapted and in training: bare where vectors are compared, else with a head.

    Errors: Unsupported for a family without such a head.
    """
    from transformers import AutoModel, AutoModelForSequenceClassification

    config._attn_implementation = EFFICIENT
    config.use_cache = False
    config.num_labels = LABELS
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0
    kind: Any = AutoModel if shape.compared else AutoModelForSequenceClassification
    try:
        with torch.device("meta"):
            model: Any = kind.from_config(config, dtype=dtype)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise Unsupported(f"transformers has no head over labels for {config.model_type}") from error
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Dropout) and module.p > 0:
            model.set_submodule(name, _Dropout(module.p))
    if not isinstance(method, Full):
        heads = tuple(name for name in HEADS if hasattr(model, name))
        add_lora(model, method, whole=heads)
    return model.train()


class PaddedBatch:
    """The longest rows, each text of them an input of its own, in the pieces that go through the model."""

    def __init__(self, shape: TrainingShape) -> None:
        pieces = pieces_of(shape)
        self.recompute = bool(shape.compared) and shape.accumulation > 1
        if self.recompute:
            # Each is computed again for its gradient, when nothing is left of the others but gradients of
            # weights: the highest twice shows that, however many there are.
            self.pieces = [_Piece(*max(pieces, key=math.prod))] * 2
        else:
            self.pieces = [_Piece(inputs, length) for inputs, length in pieces]
        inputs = sum(len(piece.ids) for piece in self.pieces)
        self.labels = torch.zeros(inputs, dtype=torch.long, device="meta")
        self.compared = bool(shape.compared)

    @property
    def everything(self) -> list[Tensor]:
        return [*(one for piece in self.pieces for one in (piece.ids, piece.seen, piece.mask)), self.labels]

    def loss(self, model: Any) -> Tensor:
        """Cross-entropy over labels, or of each vector against all others of the batch."""
        if not self.compared:
            (piece,) = self.pieces
            logits = model(input_ids=piece.ids, attention_mask=piece.mask).logits
            return F.cross_entropy(logits.float(), self.labels, reduction="sum")

        def encode(*parts: Tensor) -> Tensor:
            return _vectors(model, *parts)

        chunks = [(piece.ids, piece.seen, piece.mask) for piece in self.pieces]
        vectors = in_chunks(encode, chunks, recompute=self.recompute)
        half = len(vectors) // 2
        scores = vectors[:half] @ vectors[half:].T * 20.0
        return F.cross_entropy(scores, self.labels[:half], reduction="sum")


class _Piece:
    """Texts side by side: [inputs, length]."""

    def __init__(self, inputs: int, length: int) -> None:
        self.ids = torch.zeros((inputs, length), dtype=torch.long, device="meta")
        self.seen = torch.zeros((inputs, length), dtype=torch.long, device="meta")
        # One row at least is shorter than the longest, so that the mask is there in full.
        self.mask = torch.ones((inputs, 1, length, length), dtype=torch.bool, device="meta")


def _vectors(model: Any, ids: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
    """The mean of each text's states, at unit length: fp32 [inputs, width]."""
    states = model(input_ids=ids, attention_mask=mask).last_hidden_state
    kept = seen[:, :, None].to(states.dtype)
    mean = (states * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
    return F.normalize(mean, dim=-1).float()
