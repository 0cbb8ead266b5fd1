"""Validation batches hold every row once and read no row before it is asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luthier.schema.protocols import TokenRow
from luthier.tasks.batches import validation_batches


class Stored(Sequence[TokenRow]):
    """Rows whose lengths are known without reading them."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = np.array(lengths)
        self.read: list[int] = []

    def __getitem__(self, index):
        self.read.append(index)
        size = int(self.lengths[index])
        ids = np.full(size, index, dtype=np.int32)
        return TokenRow(ids, np.ones(size, dtype=np.bool_), "f", index + 1, str(index))

    def __len__(self) -> int:
        return len(self.lengths)


def test_rows_are_read_with_their_batch() -> None:
    rows = Stored([3, 9, 4, 9, 1, 6])
    batches = validation_batches(rows, micro_batch_size=2, sequence_length=10, pad_id=0)
    assert not rows.read
    assert [list(group) for group in batches.groups] == [[1, 3], [5, 2, 0], [4]]
    first = batches[0]
    assert rows.read == [1, 3]
    assert sorted(set(first.input_ids.flatten().tolist())) == [1, 3]
    assert len(list(batches)) == len(batches) == 3
    assert sorted(rows.read[2:]) == [0, 1, 2, 3, 4, 5]
    assert len(batches[1:]) == 2
    assert len(validation_batches(Stored([]), micro_batch_size=2, sequence_length=10, pad_id=0)) == 0
