"""Tensors of packed and padded rows."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.schema.protocols import TokenRow

torch = pytest.importorskip("torch")


def row(*ids: int, trained: list[int]) -> TokenRow:
    mask = np.array([bool(flag) for flag in trained])
    return TokenRow(np.array(ids, dtype=np.int32), mask, "f", 1, "id")


def test_packed_rows_keep_their_own_positions_and_numbers() -> None:
    from luthier.data.collate import collate

    first, second, third = row(5, 6, 7, trained=[0, 1, 1]), row(8, 9, trained=[1, 1]), row(4, trained=[0])
    batch = collate([[first, second], [third]], pad_id=2, pad_to=6)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 2], [4, 2, 2, 2, 2, 2]]
    # The first token of a row is nobody's next token: 8 would be predicted from the row before it.
    assert batch.labels.tolist() == [[-100, 6, 7, -100, 9, -100], [-100] * 6]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 4]]
    assert batch.document_ids.tolist() == [[1, 1, 1, 2, 2, 0], [1, 0, 0, 0, 0, 0]]
    assert (batch.tokens, batch.trained) == (6, 3)
    assert {t.dtype for t in (batch.input_ids, batch.labels, batch.position_ids, batch.document_ids)} == {
        torch.int64
    }


def test_it_pads_to_the_longest_and_a_real_pad_token_keeps_its_label() -> None:
    from luthier.data.collate import collate

    batch = collate([[row(2, 2, trained=[0, 1])], [row(1, 2, 2, trained=[0, 0, 1])]], pad_id=2)
    assert batch.labels.tolist() == [[-100, 2, -100], [-100, -100, 2]]
    assert batch.document_ids.tolist() == [[1, 1, 0], [1, 1, 1]]
