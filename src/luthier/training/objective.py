"""What is minimised, as a sum and its weight: accumulation and world size cannot change the loss."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100


class MicroBatch(Protocol):
    """Rows that go through the model at once. All tensors are [rows, length], int64.

    Labels are those of the tokens themselves (not shifted), -100 where a token carries no loss.
    Positions restart with each document; document ids count from 1 within a row, 0 is padding.
    """

    @property
    def input_ids(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def position_ids(self) -> Tensor: ...
    @property
    def document_ids(self) -> Tensor: ...


@dataclass(frozen=True)
class OnDevice:
    """A micro-batch where the model is."""

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    document_ids: Tensor


def to_device(batch: MicroBatch, device: torch.device) -> MicroBatch:
    """The micro-batch where the model is, moved only if it is elsewhere."""
    if batch.input_ids.device == device:
        return batch
    if (move := getattr(batch, "to", None)) is not None:
        moved: MicroBatch = move(device)
        return moved
    parts = (batch.input_ids, batch.labels, batch.position_ids, batch.document_ids)
    return OnDevice(*(part.to(device, non_blocking=True) for part in parts))


class Loss(NamedTuple):
    """total: the sum over trained tokens, with its graph. weight: how many they are."""

    total: Tensor
    weight: float


class Objective(Protocol):
    """The loss of a task."""

    def scope(self, model: Any) -> AbstractContextManager[None]:
        """What must hold around forward and backward pass (checkpointed layers run again in the latter)."""

    def weight(self, batch: MicroBatch) -> float:
        """What the batch will weigh, known before the forward pass."""

    def __call__(self, model: Any, batch: MicroBatch) -> Loss:
        """The loss of one micro-batch."""


@runtime_checkable
class WholeStep(Protocol):
    """An objective that takes all micro-batches of a step at once."""

    def step(self, model: Any, batches: Sequence[MicroBatch], weight: float) -> Tensor:
        """Forward and backward pass of all of them; the sum of their losses by weight, without a graph."""


class Flat(NamedTuple):
    """A micro-batch without padding, its documents end to end.

    ids, positions: [1, tokens]. lengths: tokens of each document. sources: [trained] places whose
    hidden state predicts a trained token; targets: [trained] those tokens.
    """

    ids: Tensor
    positions: Tensor
    lengths: tuple[int, ...]
    sources: Tensor
    targets: Tensor


def flatten(batch: MicroBatch) -> Flat:
    """Drop the padding and lay the documents of all rows end to end.

    The first token of a document has nothing before it to be predicted from and never carries loss.
    """
    kept = batch.document_ids > 0
    rows = torch.arange(kept.shape[0], device=kept.device).unsqueeze(1)
    names = (rows * (kept.shape[1] + 1) + batch.document_ids)[kept]
    _, lengths = torch.unique_consecutive(names, return_counts=True)
    labels = batch.labels[kept]
    trained = (labels != IGNORED).index_fill_(0, lengths.cumsum(0) - lengths, value=False)
    places = trained.nonzero().squeeze(1)
    return Flat(
        batch.input_ids[kept].unsqueeze(0),
        batch.position_ids[kept].unsqueeze(0),
        tuple(lengths.tolist()),
        places - 1,
        labels[places],
    )


def trained_tokens(batch: MicroBatch) -> int:
    """How many targets `flatten` gives: trained tokens but those that begin a document, at position 0."""
    return int(((batch.labels != IGNORED) & (batch.document_ids > 0) & (batch.position_ids > 0)).sum())


ROUND = 64
"""Tokens of a flat batch are filled up to a multiple of this."""


def rounded(flat: Flat) -> Flat:
    """Fill a flat batch up with one document that carries no loss, so that few lengths ever occur.

    Kernels are prepared and memory is kept for each length that is met. On a CPU with bf16 units a run
    over ever new lengths grew by 25 MB a step; over rounded ones it stays as it is.
    """
    missing = -flat.ids.shape[1] % ROUND
    if not missing:
        return flat
    return flat._replace(
        ids=F.pad(flat.ids, (0, missing)),
        positions=torch.cat((flat.positions, torch.arange(missing, device=flat.ids.device)[None]), dim=1),
        lengths=(*flat.lengths, missing),
    )


@dataclass(frozen=True)
class Padded:
    """One document a row, padded on the right. All tensors are [documents, longest]."""

    ids: Tensor
    positions: Tensor
    mask: Tensor
    labels: Tensor


def unpack(flat: Flat) -> Padded:
    """Documents of a flat batch as padded rows, for models whose attention cannot be exchanged."""
    device = flat.ids.device
    labels = torch.full_like(flat.ids[0], IGNORED).index_copy_(0, flat.sources + 1, flat.targets)

    def rows(values: Tensor, fill: int) -> Tensor:
        parts = torch.split(values, list(flat.lengths))
        return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True, padding_value=fill)

    lengths = torch.tensor(flat.lengths, device=device)
    longest = int(max(flat.lengths))
    mask = torch.arange(longest, device=device)[None] < lengths[:, None]
    return Padded(rows(flat.ids[0], 0), rows(flat.positions[0], 0), mask.long(), rows(labels, IGNORED))


def full_logits_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of cross-entropies of [rows, length, vocab] logits against unshifted [rows, length] labels."""
    return F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )
