"""The processes that train one model together: what they add up, agree on and share out.

They stand in a grid whose sides are the sizes of ``training.parallel``. Along replicate and shard each
process works through its own micro-batches of a step; along the others they work on the same ones
together. One process alone is the same code with nothing to add.
"""

from __future__ import annotations

import datetime
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from luthier.errors import UsageError
from luthier.schema.recipe import Parallel

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")
CPU = torch.device("cpu")
SIDES = ("pipeline", "replicate", "shard", "context", "expert", "tensor")
"""Sides of the grid from the outermost: neighbours in the last have neighbouring ranks (fast links)."""
BUCKET = 1 << 24
"""Numbers that are added up at once: small weights travel together (64 MiB in fp32)."""
PATIENCE = 600.0
"""Seconds that a process waits for the others before it takes them for dead; LUTHIER_TIMEOUT sets others."""


@dataclass(frozen=True)
class World:
    """The processes that train together, as one of them sees them."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    parallel: Parallel | None = None
    """Sizes of the grid; None: the whole model in every process."""

    @property
    def first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Sizes of the grid by name."""
        return (self.parallel or Parallel()).sizes(self.size)

    @cached_property
    def mesh(self) -> DeviceMesh | None:
        """The grid, with a side for each size above one, in the order of `SIDES`; None for one process.

        Made at the first call, which every process must make.
        """
        sides = [name for name in SIDES if self.sizes[name] > 1]
        if not sides:
            return None
        from torch.distributed.device_mesh import init_device_mesh

        shape = tuple(self.sizes[name] for name in sides)
        return init_device_mesh(self.device.type, shape, mesh_dim_names=tuple(sides))

    def side(self, *names: str) -> DeviceMesh | None:
        """The part of the grid along these sides, of those that are longer than one; None where none is."""
        found = tuple(name for name in names if self.sizes[name] > 1)
        return self.mesh[found] if found and self.mesh is not None else None

    def place(self, name: str) -> int:
        """Where this process stands along a side: the last one changes first from rank to rank."""
        inner = math.prod(self.sizes[one] for one in SIDES[SIDES.index(name) + 1 :])
        return self.rank // inner % self.sizes[name]

    @property
    def sharded(self) -> bool:
        """Whether each process has a part of every tensor, and gathers the others."""
        return self.sizes["shard"] > 1

    @property
    def divided(self) -> bool:
        """Whether no process holds the whole model, in whatever way it is divided."""
        return any(self.sizes[name] > 1 for name in ("shard", "tensor", "pipeline", "expert"))

    @property
    def shares(self) -> int:
        """Into how many parts the micro-batches of a step are shared out."""
        return self.sizes["replicate"] * self.sizes["shard"]

    @cached_property
    def share(self) -> int:
        """Which part is that of this process."""
        return self.place("replicate") * self.sizes["shard"] + self.place("shard")

    @cached_property
    def sharers(self) -> dist.ProcessGroup | None:
        """The processes that have the other parts; None where these are all."""
        side = self.side("replicate", "shard")
        if self.shares == self.size or side is None:
            return None
        return (side if side.ndim == 1 else side._flatten("shares")).get_group()

    def own(self, items: Sequence[T]) -> list[T]:
        """The part of this process in a step's micro-batches; together the parts are the step."""
        return list(items[self.share :: self.shares])

    def turns(self, items: Sequence[T]) -> list[tuple[T, bool]]:
        """The same, each with whether it counts.

        Who holds a part of the weights takes part in every turn of the others: a process whose turns are
        fewer works through the first item once more, and that does not count.
        """
        own = [(item, True) for item in self.own(items)]
        missing = -(-len(items) // self.shares) - len(own) if self.sharded else 0
        return own + [(items[0], False)] * missing

    def total(self, *numbers: float) -> list[float]:
        """Each number added up over all parts of a step, in fp64."""
        if self.shares == 1:
            return list(numbers)
        found = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(found, group=self.sharers)
        return [float(one) for one in found.tolist()]

    def most(self, number: int) -> int:
        """The largest number that any process gives."""
        if self.size == 1:
            return number
        found = torch.tensor(number, dtype=torch.int64, device=self.device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return int(found)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Add tensors up over all parts of a step, in place; of the same shapes and types everywhere."""
        if self.shares > 1:
            add_over(tensors, self.sharers)

    def norm(self, own: Tensor) -> Tensor:
        """The norm of what those that divide the weights hold together, from that of this one's part."""
        if (side := self.side("shard")) is None:
            return own
        found = own.to(self.device, torch.float32).square()
        dist.all_reduce(found, group=side.get_group())
        return found.sqrt()

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


def add_over(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> None:
    """Add tensors up over a group (None: over all), in place; of the same shapes and types everywhere."""
    for bucket in buckets(tensors):
        if len(bucket) == 1 and bucket[0].is_contiguous():
            dist.all_reduce(bucket[0], group=group)
            continue
        flat = torch.cat([one.reshape(-1) for one in bucket])
        dist.all_reduce(flat, group=group)
        parts = torch.split(flat, [one.numel() for one in bucket])
        torch._foreach_copy_(list(bucket), [p.view_as(b) for p, b in zip(parts, bucket, strict=True)])


def buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
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


def timeout() -> datetime.timedelta:
    """How long a process waits for the others. Errors: UsageError for a LUTHIER_TIMEOUT that is no time."""
    given = os.environ.get("LUTHIER_TIMEOUT") or str(PATIENCE)
    try:
        found = datetime.timedelta(seconds=float(given))
    except (ValueError, OverflowError):
        found = datetime.timedelta()
    if found.total_seconds() < 1:
        raise UsageError(f"LUTHIER_TIMEOUT={given} is not a time", hint="give seconds, for example 1800")
    return found


@contextmanager
def together(
    rank: int, size: int, kind: str, *, local: int, address: str, parallel: Parallel | None = None
) -> Iterator[World]:
    """Join the other processes at that address (``tcp://host:port``); leave them at the end.

    kind: of the device. local: which of this machine's processes it is: its GPU, or a share of the cores.
    parallel: how they share the training.
    """
    cuda = kind == "cuda"
    device = torch.device(kind, local) if cuda else torch.device(kind)
    if cuda:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # says in words where there is none
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // size))
    dist.init_process_group(
        "nccl" if cuda else "gloo", init_method=address, rank=rank, world_size=size, timeout=timeout(),
        device_id=device if cuda else None,
    )  # fmt: skip
    try:
        yield World(rank, size, device, parallel)
    finally:
        dist.destroy_process_group()
