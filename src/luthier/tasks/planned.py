"""What all sources of training batches share: epochs planned by index, the last one remembered."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from luthier.data.batching import plan_epoch
from luthier.sizing.padding import FILLED

if TYPE_CHECKING:
    import torch

S = TypeVar("S", bound=Sequence[Any])
Rows = list[int]
"""Rows of one micro-batch, or of one step, by index."""


class PlannedBatches(ABC, Generic[S]):
    """The part of a `training.source.BatchSource` that only knows which rows a step holds.

    S: a step, as indices of rows in however many levels its micro-batches need.
    """

    _planned: tuple[int, Sequence[S]] | None = None

    @abstractmethod
    def _plan(self, epoch: int) -> Sequence[S]:
        """Rows of each step of an epoch, by index: a function of the seed and the epoch alone."""

    @abstractmethod
    def place(self, index: int) -> str:
        """Where that row stands, as ``file:line``."""

    def plan(self, epoch: int) -> Sequence[S]:
        """Rows of each step of an epoch, by index. The last epoch asked for is remembered."""
        if self._planned is None or self._planned[0] != epoch:
            self._planned = (epoch, self._plan(epoch))
        return self._planned[1]

    def steps(self, epoch: int) -> int:
        """Optimiser steps of that epoch."""
        return len(self.plan(epoch))

    def rows(self, epoch: int, step: int) -> list[str]:
        """Where the rows of a step stand."""
        return [self.place(index) for index in _indices(self.plan(epoch)[step])]


def _indices(found: Any) -> Iterator[int]:
    for one in found:
        if isinstance(one, int):
            yield one
        else:
            yield from _indices(one)


def plan_rows(
    lengths: Sequence[int], *, batch_size: int, micro_batch_size: int, seed: int, epoch: int
) -> list[list[Rows]]:
    """`data.batching.plan_epoch` for rows that never share a sequence: step, micro-batch, row.

    A step's rows are drawn from all; within it the longest come first, so micro-batches are of like length.
    """
    steps = plan_epoch(
        lengths,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        sequence_length=max(lengths, default=0),
        packing=False,
        seed=seed,
        epoch=epoch,
        grouped=False,
    )
    return [[[row for packed in micro for row in packed] for micro in step] for step in steps]


def filled_on(device: torch.device) -> int:
    """Tokens, padding among them, that a chunk has on that device before it may end for shorter inputs."""
    return FILLED if device.type == "cuda" else 0


def by_length(lengths: Sequence[int], tokens: int) -> list[Rows]:
    """Indices in groups of like length, longest first; padded, a group holds at most ``tokens``."""
    groups: list[Rows] = []
    for index in sorted(range(len(lengths)), key=lambda one: -lengths[one]):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
