"""Token rows into padded tensors. The only module of the room that imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from luthier.schema.protocols import TokenRow

IGNORED = -100
"""Label of a position without loss, as torch's cross-entropy takes it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch. All tensors are [rows, sequence] int64."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    """The token itself where it carries loss, else -100; the loss shifts by one. The first token of a
    row never carries loss: nothing of its row stands before it."""
    position_ids: torch.Tensor
    """Restart at 0 with every packed row, and with the padding."""
    document_ids: torch.Tensor
    """1, 2, ... for the packed rows of a sequence, 0 for padding: attention stays within one number."""
    tokens: int
    """Tokens that are not padding."""
    trained: int
    """Tokens with a label."""


def collate(batch: Sequence[Sequence[TokenRow]], *, pad_id: int, pad_to: int | None = None) -> Batch:
    """Lay sequences of packed rows side by side, padded at the end.

    batch: for each sequence its rows in order. pad_to: length to pad to; the longest sequence when
    not given, and never less.
    """
    assert batch, "a micro-batch holds at least one sequence"
    totals = [sum(len(row.ids) for row in sequence) for sequence in batch]
    width = max([*totals, pad_to or 0])
    shape = (len(batch), width)
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    documents = np.zeros(shape, dtype=np.int64)
    for index, sequence in enumerate(batch):
        start = 0
        for number, row in enumerate(sequence, 1):
            end = start + len(row.ids)
            input_ids[index, start:end] = row.ids
            labels[index, start:end] = np.where(row.trained, row.ids, IGNORED)
            labels[index, start : start + 1] = IGNORED
            positions[index, start:end] = np.arange(end - start)
            documents[index, start:end] = number
            start = end
        positions[index, start:] = np.arange(width - start)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        labels=torch.from_numpy(labels),
        position_ids=torch.from_numpy(positions),
        document_ids=torch.from_numpy(documents),
        tokens=sum(totals),
        trained=int((labels != IGNORED).sum()),
    )
