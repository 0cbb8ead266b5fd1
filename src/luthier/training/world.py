"""The processes that train one model together: what they add up, agree on and share out.

Every process holds the whole model and works through its own micro-batches of each step; gradients are
added up before the update, so that all of them hold the same weights afterwards. One process alone is
the same code with nothing to add.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
CPU = torch.device("cpu")
BUCKET = 1 << 24
"""Numbers that are added up at once: small weights travel together (64 MiB in fp32)."""
PATIENCE = datetime.timedelta(minutes=10)
"""How long a process waits for the others before it takes them for dead."""


@dataclass(frozen=True)
class World:
    """The processes that train together, as one of them sees them."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def own(self, items: Sequence[T]) -> list[T]:
        """The part of this process in a step's micro-batches; together the parts are the step."""
        return list(items[self.rank :: self.size])

    def total(self, *numbers: float) -> list[float]:
        """Each number added up over all processes, in fp64."""
        if self.size == 1:
            return list(numbers)
        found = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(found)
        return [float(one) for one in found.tolist()]

    def most(self, number: int) -> int:
        """The largest number that any process gives."""
        if self.size == 1:
            return number
        found = torch.tensor(number, dtype=torch.int64, device=self.device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return int(found)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Add tensors up over all processes, in place; of the same shapes and types everywhere."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([one.reshape(-1) for one in bucket])
            dist.all_reduce(flat)
            parts = torch.split(flat, [one.numel() for one in bucket])
            torch._foreach_copy_(list(bucket), [p.view_as(b) for p, b in zip(parts, bucket, strict=True)])

    def same(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the first one's values."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.size > 1:
            self.most(0)


ALONE = World()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type in groups of about `BUCKET` numbers, in order."""
    held: list[Tensor] = []
    for tensor in tensors:
        full = sum(one.numel() for one in held) + tensor.numel() > BUCKET
        if held and (full or held[0].dtype != tensor.dtype):
            yield held
            held = []
        held.append(tensor)
    if held:
        yield held


@contextmanager
def together(rank: int, size: int, kind: str, *, local: int, address: str) -> Iterator[World]:
    """Join the other processes at that address (``tcp://host:port``); leave them at the end.

    kind: of the device. local: which of this machine's processes it is: its GPU, or a share of the cores.
    """
    cuda = kind == "cuda"
    device = torch.device(kind, local) if cuda else torch.device(kind)
    if cuda:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // size))
    dist.init_process_group(
        "nccl" if cuda else "gloo", init_method=address, rank=rank, world_size=size, timeout=PATIENCE,
        device_id=device if cuda else None,
    )  # fmt: skip
    try:
        yield World(rank, size, device)
    finally:
        dist.destroy_process_group()
