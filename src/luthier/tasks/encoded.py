"""Texts and pairs as padded batches, for models that read a whole input at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from luthier.data.inputs import Input
from luthier.data.tokenizer import FileTokenizer
from luthier.sizing.padding import chunks_of
from luthier.tasks.planned import PlannedBatches, Rows, by_length, plan_rows


@dataclass(frozen=True, slots=True)
class Encoded:
    """One input: token ids and segment ids, special tokens among them."""

    ids: list[int]
    types: list[int]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class EncodedBatch:
    """A `training.objective.MicroBatch` of whole inputs, padded on the right.

    input_ids, attention_mask, token_type_ids: [inputs, longest] int64; token_type_ids None where the
    model has no segments. labels: what the objective wants; nobody else looks into it.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    token_type_ids: Tensor | None = None

    @property
    def document_ids(self) -> Tensor:
        """1 for tokens, 0 for padding."""
        return self.attention_mask

    @property
    def position_ids(self) -> Tensor:
        """Places from 0 in each input."""
        return torch.arange(self.input_ids.shape[1], device=self.input_ids.device).expand_as(self.input_ids)

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What a model of transformers takes."""
        found = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        if self.token_type_ids is not None:
            found["token_type_ids"] = self.token_type_ids
        return found

    def to(self, device: torch.device) -> EncodedBatch:
        types = self.token_type_ids
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            attention_mask=self.attention_mask.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            token_type_ids=None if types is None else types.to(device, non_blocking=True),
        )


def encode(inputs: Sequence[Input], tokenizer: FileTokenizer, *, most: int | None) -> list[Encoded]:
    """Inputs of at most ``most`` tokens, as transformers' own tokenizer gives them."""
    return [Encoded(*one) for one in tokenizer.encode_inputs(inputs, most=most)]


def reads_segments(model: Any, tokenizer: FileTokenizer) -> bool:
    """Whether the model tells two texts apart, and transformers' tokenizer says which is which."""
    return tokenizer.gives_segments and int(getattr(model.config, "type_vocab_size", 0) or 0) > 1


def pad(inputs: Sequence[Encoded], labels: Tensor, *, pad_id: int, segments: bool) -> EncodedBatch:
    """Inputs side by side. segments: whether the model has segment embeddings."""
    lengths = torch.tensor([len(one) for one in inputs])
    held = torch.arange(int(lengths.max()))[None] < lengths[:, None]

    def laid(values: Iterable[int], fill: int) -> Tensor:
        return torch.full(held.shape, fill).masked_scatter_(held, torch.tensor(list(values)))

    ids = laid(chain.from_iterable(one.ids for one in inputs), pad_id)
    types = laid(chain.from_iterable(one.types for one in inputs), 0) if segments else None
    return EncodedBatch(ids, held.long(), labels, types)


Labels = Callable[[Sequence[int]], Tensor]
"""From the indices of rows to the labels of a batch of them."""


class EncodedRows(PlannedBatches[list[Rows]]):
    """A `training.source.BatchSource` over inputs, one a row, in an order that the seed alone decides.

    places: where each row stands, as ``file:line``. filled: tokens that a micro-batch has before it may end
    for shorter rows (see `sizing.padding.chunks_of`).
    """

    def __init__(
        self,
        inputs: Sequence[Encoded],
        labels: Labels,
        places: Sequence[str],
        *,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        pad_id: int,
        segments: bool,
        filled: int = 0,
    ) -> None:
        self.inputs, self.labels, self.places = inputs, labels, places
        self.batch_size, self.micro_batch_size, self.seed = batch_size, micro_batch_size, seed
        self.pad_id, self.segments, self.filled = pad_id, segments, filled
        self.lengths = [len(one) for one in inputs]

    def _plan(self, epoch: int) -> list[list[Rows]]:
        steps = plan_rows(
            self.lengths,
            batch_size=self.batch_size,
            micro_batch_size=self.micro_batch_size,
            seed=self.seed,
            epoch=epoch,
        )
        return [self._parts([row for micro in step for row in micro]) for step in steps]

    def _parts(self, rows: Rows) -> list[Rows]:
        lengths = [self.lengths[row] for row in rows]
        chunks = chunks_of(lengths, self.micro_batch_size, filled=self.filled)
        return [rows[first:end] for first, end, _ in chunks]

    def place(self, index: int) -> str:
        return self.places[index]

    def batches(self, epoch: int, step: int) -> list[EncodedBatch]:
        return [self.batch(chosen) for chosen in self.plan(epoch)[step]]

    def batch(self, chosen: Sequence[int]) -> EncodedBatch:
        """The rows of these indices as one batch."""
        return pad(
            [self.inputs[index] for index in chosen],
            self.labels(chosen),
            pad_id=self.pad_id,
            segments=self.segments,
        )

    def in_order(self, tokens: int) -> list[EncodedBatch]:
        """All rows once, longest first, as many at once as that many padded tokens hold."""
        return [self.batch(chosen) for chosen in by_length(self.lengths, tokens)]
