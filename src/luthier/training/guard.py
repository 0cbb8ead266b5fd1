"""Go on when memory runs out: the same step in smaller pieces, with the same loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from luthier.files import readable
from luthier.training.objective import IGNORED, MicroBatch

_SIGNS = ("can't allocate memory", "CUDA error: out of memory")
"""What torch says where it raises no error of its own for that: of the host, and of CUDA's calls, which
lock pages of the host too."""
_COLUMNS = ("input_ids", "labels", "position_ids", "document_ids")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


class HostShort(MemoryError):
    """The host has no pages left that can be locked for copies of what is on a GPU."""


MORE_ROOM = "allow more locked memory (ulimit -l unlimited); a machine with more free memory of its own"
"""Ways out that every lack of locked memory has."""


def host_place(tensor: Tensor) -> Tensor:
    """An empty tensor of the host for a copy of this one, in locked pages where it is on a GPU.

    Errors: HostShort where there are none left, of which CUDA says that memory ran out and not whose.
    """
    try:
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    except RuntimeError as error:
        if not tensor.is_cuda or not ran_out(error):
            raise
        size = readable(tensor.nbytes)
        raise HostShort(f"{size} of the host's memory cannot be locked for a copy from the GPU") from None


def units_of(batch: MicroBatch) -> tuple[int, str]:
    """How many things a micro-batch can be cut between: its rows, or the documents of its only row.

    A batch of another make says so itself, by an attribute ``pieces`` and a method ``cut(most)``. One
    where it does not: pairs that are compared within a batch have another loss when they are apart.
    """
    if hasattr(batch, "pieces"):
        return int(batch.pieces), "rows"
    if not _of_rows(batch):
        return 1, "rows"
    rows = batch.input_ids.shape[0]
    return (rows, "rows") if rows > 1 else (int(batch.document_ids.max()), "documents")


def cut(batch: MicroBatch, halvings: int) -> list[MicroBatch]:
    """The micro-batch halved so many times, by rows, and then by the documents packed into a row.

    The pieces hold every token once, in order; the sum of their losses is that of the whole.
    """
    count, of = units_of(batch)
    if halvings < 1 or count < 2:
        return [batch]
    pieces = _parts(batch, -(-count // 2**halvings))
    spare = halvings - math.ceil(math.log2(count))
    if of == "documents" or spare < 1:
        return pieces
    return [piece for one in pieces for piece in cut(one, spare)]


def _parts(batch: MicroBatch, most: int) -> list[MicroBatch]:
    """Pieces of at most so many rows (of an only row: documents)."""
    if hasattr(batch, "cut"):
        return list(batch.cut(most))
    rows = batch.input_ids.shape[0]
    count, _ = units_of(batch)
    found = []
    for start in range(0, count, most):
        if rows > 1:
            kept = slice(start, start + most)
            width = int((batch.document_ids[kept] > 0).sum(1).max())
            columns = slice(0, max(1, width))
        else:
            kept = slice(0, 1)
            inside = (batch.document_ids[0] > start) & (batch.document_ids[0] <= start + most)
            places = inside.nonzero().squeeze(1)
            columns = slice(int(places[0]), int(places[-1]) + 1)
        parts = {name: getattr(batch, name)[kept, columns].clone() for name in _COLUMNS}
        if rows == 1:
            parts["document_ids"] = (parts["document_ids"] - start).clamp_min(0)
        found.append(_like(batch, parts))
    return found


def _of_rows(batch: Any) -> bool:
    """Whether the batch's tensors are exactly rows of tokens, with what belongs to each."""
    if not is_dataclass(batch):
        return False
    tensors = {entry.name for entry in fields(batch) if isinstance(getattr(batch, entry.name), Tensor)}
    return tensors == set(_COLUMNS)


def _like(batch: Any, parts: dict[str, Tensor]) -> MicroBatch:
    counts = {
        "tokens": int((parts["document_ids"] > 0).sum()),
        "trained": int((parts["labels"] != IGNORED).sum()),
    }
    names = {entry.name for entry in fields(batch)}
    found: MicroBatch = replace(batch, **parts, **{k: v for k, v in counts.items() if k in names})
    return found


@dataclass(frozen=True)
class Draws:
    """State of torch's generators before a step, so that a second try draws the same numbers."""

    host: Tensor
    device: Tensor | None

    @classmethod
    def now(cls, device: torch.device) -> Draws:
        cuda = device.type == "cuda"
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state(device) if cuda else None)

    def put_back(self, device: torch.device) -> None:
        torch.set_rng_state(self.host)
        if self.device is not None:
            torch.cuda.set_rng_state(self.device, device)
