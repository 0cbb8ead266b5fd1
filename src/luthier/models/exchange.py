"""What processes that hold parts of one model exchange within a layer, with the gradient of each exchange.

Every process of the group must come to each call in the same order, in the backward pass too; the same model
run on all of them does.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

Group = dist.ProcessGroup


class _Fan(torch.autograd.Function):
    """Identity whose gradients are added up over the group."""

    @staticmethod
    def forward(ctx: Any, group: Group, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        ctx.shapes = [(one.shape, one.dtype, one.device) for one in tensors]
        return tuple(one.view_as(one) for one in tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = []
        for place, grad in enumerate(grads):
            if not ctx.needs_input_grad[place + 1]:
                found.append(None)
                continue
            whole = grad.contiguous().clone()
            dist.all_reduce(whole, group=ctx.group)
            found.append(whole)
        return None, *found


class _Gathered(torch.autograd.Function):
    """Sum over the group; the gradient of a process's part is that of the sum."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group) -> Tensor:
        del ctx
        whole = tensor.contiguous().clone()
        dist.all_reduce(whole, group=group)
        return whole

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        del ctx
        return grads[0], None


class _Swap(torch.autograd.Function):
    """Piece i of the first dimension goes to process i, whose own comes in its place."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _swapped(tensor, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _swapped(grads[0], ctx.group), None


def _swapped(tensor: Tensor, group: Group) -> Tensor:
    given = tensor.contiguous()
    got = torch.empty_like(given)
    dist.all_to_all_single(got, given, group=group)
    return got


def fanned(group: Group, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors that are the same everywhere, each process to use its own part of what follows from them.

    Their gradients are added up over the group, in one call for all of them.
    """
    found: tuple[Tensor, ...] = _Fan.apply(group, *tensors)  # type: ignore[no-untyped-call]
    return found


def added(tensor: Tensor, group: Group) -> Tensor:
    """The sum of what the processes have, in all of them; each computes the same from it."""
    found: Tensor = _Gathered.apply(tensor, group)  # type: ignore[no-untyped-call]
    return found


def swapped(tensor: Tensor, group: Group) -> Tensor:
    """All to all: [processes, ...], piece i of this process for piece of this process in i."""
    found: Tensor = _Swap.apply(tensor, group)  # type: ignore[no-untyped-call]
    return found
