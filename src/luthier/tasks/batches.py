"""Training and validation rows as batches, in an order that the seed alone decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from luthier.data.batching import Step, plan_epoch
from luthier.data.collate import Batch, collate
from luthier.data.store import row_lengths
from luthier.schema.protocols import TokenRow
from luthier.tasks.planned import PlannedBatches, by_length


class RowBatches(PlannedBatches[Step]):
    """A `training.source.BatchSource` over rendered rows.

    batch_size, micro_batch_size: sequences an optimiser step and at once; sequence_length: longest
    sequence in tokens; packing: whether several rows share one.
    """

    def __init__(
        self,
        rows: Sequence[TokenRow],
        *,
        batch_size: int,
        micro_batch_size: int,
        sequence_length: int,
        packing: bool,
        seed: int,
        pad_id: int,
    ) -> None:
        self.tokens, self.pad_id, self.seed = rows, pad_id, seed
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.sequence_length, self.packing = sequence_length, packing
        self.lengths = row_lengths(rows)

    def _plan(self, epoch: int) -> list[Step]:
        return plan_epoch(
            self.lengths,
            batch_size=self.batch_size,
            micro_batch_size=self.micro_batch_size,
            sequence_length=self.sequence_length,
            packing=self.packing,
            seed=self.seed,
            epoch=epoch,
        )

    def place(self, index: int) -> str:
        return f"{self.tokens[index].file}:{self.tokens[index].line}"

    def batches(self, epoch: int, step: int) -> list[Batch]:
        chosen = self.plan(epoch)[step]
        return [
            collate([[self.tokens[index] for index in packed] for packed in micro], pad_id=self.pad_id)
            for micro in chosen
        ]


class ValidationBatches(Sequence[Batch]):
    """Batches of rows that are read when they are asked for: only lengths and places are kept."""

    def __init__(self, rows: Sequence[TokenRow], groups: Sequence[Sequence[int]], *, pad_id: int) -> None:
        self.tokens, self.groups, self.pad_id = rows, groups, pad_id

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | list[Batch]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        return collate([[self.tokens[row]] for row in self.groups[index]], pad_id=self.pad_id)

    def __len__(self) -> int:
        return len(self.groups)


def validation_batches(
    rows: Sequence[TokenRow], *, micro_batch_size: int, sequence_length: int, pad_id: int
) -> ValidationBatches:
    """All rows once, longest first, as many at once as one micro-batch of training holds tokens."""
    # Padded to the longest of a group: what counts where rows cannot be flattened.
    groups = by_length(row_lengths(rows), micro_batch_size * sequence_length)
    return ValidationBatches(rows, groups, pad_id=pad_id)
