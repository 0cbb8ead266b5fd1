"""How the weights of one process and those of the others make up the model, where they are not the same.

Along tensor and expert a process has a slice of some weights and all of the others; along pipeline it has
the weights of some layers alone; along context it has all of them and gradients of its own tokens. Slices
are plain tensors, so the layers compute as ever. Along shard it has a part of every weight
(`training.sharding`). Checkpoints hold whole weights under the model's names: they go on with any number
of processes, divided in any way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from luthier.training.gradients import norm_of
from luthier.training.sharding import is_divided, part_of, whole_of
from luthier.training.world import ALONE, World, add_over

ALONG = ("pipeline", "context", "expert", "tensor")
"""Sides of the grid along which processes work on the same micro-batches."""
State = dict[str, Any]
Groups = list[list[str]]
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Division:
    """What one process has of the trained weights."""

    world: World = ALONE
    side: str | None = None
    """Of `ALONG` the one that is longer than one; None where each process has everything."""
    cuts: Mapping[str, int] = field(default_factory=dict)
    """Weights of which this process has a slice -> the dimension that is cut."""
    summed: frozenset[str] = frozenset()
    """Weights that all have, of whose gradients each has a part."""
    twins: frozenset[str] = frozenset()
    """Weights that the first and the last stage both have: they are one, and the first counts it."""
    sizes: tuple[int, int] | None = None
    """Numbers in all trained weights and in all weights of the whole model; None where each has all."""

    @property
    def place(self) -> int:
        """Where this process stands along the side."""
        return 0 if self.side is None else self.world.place(self.side)

    @property
    def count(self) -> int:
        """Processes along the side."""
        return 1 if self.side is None else self.world.sizes[self.side]

    @cached_property
    def group(self) -> dist.ProcessGroup:
        """The processes along the side."""
        assert self.side is not None
        mesh = self.world.side(self.side)
        assert mesh is not None
        return mesh.get_group()

    @property
    def apart(self) -> bool:
        """Whether no process has all of the weights."""
        return self.side not in (None, "context")

    @property
    def draws(self) -> int:
        """Names the draws of dropout: alike where processes compute the same, apart elsewhere."""
        context = self.world.sizes["context"]
        return self.world.share * context + self.world.place("context")

    # -- gradients ---------------------------------------------------------------------------

    def add_up(self, masters: Mapping[str, Tensor]) -> None:
        """Make the gradients of this process those of the whole micro-batches that it worked on."""
        if self.twins:
            self._join_twins(masters)
        wanted = [master for name, master in masters.items() if name in self.summed]
        if self.side is None or not wanted:
            return
        used = torch.tensor([float(master.grad is not None) for master in wanted], device=self.world.device)
        dist.all_reduce(used, group=self.group)
        for master, count in zip(wanted, used.tolist(), strict=True):
            if count and master.grad is None:
                master.grad = torch.zeros_like(master)
        add_over([master.grad for master in wanted if master.grad is not None], self.group)

    def _join_twins(self, masters: Mapping[str, Tensor]) -> None:
        ends = (0, self.count - 1)
        if self.place not in ends:
            return
        other = dist.get_global_rank(self.group, ends[self.place == 0])
        for name in sorted(self.twins):
            master = masters[name]
            own = torch.zeros_like(master) if master.grad is None else master.grad
            got = torch.empty_like(own)
            ops = [
                dist.P2POp(dist.isend, own.contiguous(), other, self.group),
                dist.P2POp(dist.irecv, got, other, self.group),
            ]
            for work in dist.batch_isend_irecv(ops):
                work.wait()
            master.grad = own + got

    def norm(self, masters: Mapping[str, Tensor]) -> Tensor:
        """Norm of the gradients of all trained weights, each counted once."""
        grads = {name: one.grad for name, one in masters.items() if one.grad is not None}
        if not self.apart:
            return norm_of(list(grads.values()))
        mine = [grad for name, grad in grads.items() if self._own(name)]
        shared = [grad for name, grad in grads.items() if not self._own(name) and not self._others(name)]
        square = self._square(mine)
        dist.all_reduce(square, group=self.group)
        return (square + self._square(shared)).sqrt()

    def _own(self, name: str) -> bool:
        """Whether what this process has of a weight counts for itself."""
        return name in self.cuts or (self.side == "pipeline" and not self._others(name))

    def _others(self, name: str) -> bool:
        """Whether another process counts a weight that this one has too."""
        return name in self.twins and self.place > 0

    def _square(self, grads: Sequence[Tensor]) -> Tensor:
        return norm_of(grads).to(self.world.device).square()

    # -- weights and states ------------------------------------------------------------------

    def whole(self, values: Mapping[str, Tensor], weights: Weights) -> dict[str, Tensor]:
        """Values of all trained weights in the first process, on the host. Every process must call it.

        values: of this process's part of its weights. weights: those of the model that it has, by name.
        """
        if self.side == "pipeline":
            stages: list[dict[str, Tensor]] = self._told_all(
                {name: tensor.detach().cpu() for name, tensor in values.items()}
            )
            return {name: tensor for stage in reversed(stages) for name, tensor in stage.items()}
        return {name: self._joined(tensor, name, weights[name]) for name, tensor in values.items()}

    def whole_state(self, state: State, groups: Groups, weights: Weights) -> State:
        """The state of the optimiser over all trained weights. Every process must call it.

        groups: names of this process's weights by parameter group. weights: these weights.
        """
        if self._has_all(weights):
            return state
        if self.side == "pipeline":
            stages = self._told_all((groups, _named(state, groups, lambda value, _: value.cpu())))
            every = {name: values for _, named in reversed(stages) for name, values in named.items()}
            return _numbered(state, _merged([one for one, _ in stages]), every)
        joined = _named(state, groups, lambda value, name: self._joined(value, name, weights[name]))
        return _numbered(state, groups, joined)

    def own_state(self, state: State, groups: Groups, weights: Weights) -> State:
        """What this process has of a whole optimiser state. Every process must call it; the rest as there."""
        if self._has_all(weights):
            return state
        order = _merged(self._told_all(groups)) if self.side == "pipeline" else groups
        sliced = _named(state, order, lambda value, name: self._slice(value, name, weights.get(name)))
        return _numbered(state, groups, sliced)

    def own(self, values: Mapping[str, Tensor], weights: Weights) -> dict[str, Tensor]:
        """What this process has of the values of all trained weights. weights: its own."""
        if self.side == "pipeline":
            return {name: tensor for name, tensor in values.items() if name in weights}
        return {name: self._slice(tensor, name, weights.get(name)) for name, tensor in values.items()}

    def _has_all(self, weights: Weights) -> bool:
        return not self.apart and not any(map(is_divided, weights.values()))

    def _joined(self, tensor: Tensor, name: str, weight: Tensor) -> Tensor:
        if is_divided(weight):
            return whole_of(tensor, weight)
        if (dim := self.cuts.get(name)) is None:
            return tensor
        part = tensor.detach().contiguous()
        parts = [torch.empty_like(part) for _ in range(self.count)]
        dist.all_gather(parts, part, group=self.group)
        return torch.cat(parts, dim).cpu() if self.world.first else part

    def _slice(self, tensor: Tensor, name: str, weight: Tensor | None) -> Tensor:
        """weight: None for one that this process has not."""
        if weight is not None and is_divided(weight):
            return part_of(tensor, weight)
        dim = self.cuts.get(name)
        return tensor if dim is None else tensor.chunk(self.count, dim)[self.place].contiguous()

    def _told_all(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value, group=self.group)
        return found


WHOLE = Division()


def _named(state: State, groups: Groups, change: Callable[[Tensor, str], Tensor]) -> dict[str, State]:
    """States by name of the weight, each moment changed. groups: names in the state's order."""
    names = [name for group in groups for name in group]
    return {
        name: {
            key: change(value, name) if isinstance(value, Tensor) and value.ndim else value
            for key, value in state["state"][index].items()
        }
        for index, name in enumerate(names)
        if index in state["state"]
    }


def _numbered(like: State, groups: Groups, states: Mapping[str, State]) -> State:
    """States as an optimiser over these groups has them, with the settings of the state that like is."""
    number = {name: index for index, name in enumerate(name for group in groups for name in group)}
    laid = [
        {**settings, "params": [number[name] for name in group]}
        for settings, group in zip(like["param_groups"], groups, strict=True)
    ]
    found = {number[name]: states[name] for name in number if name in states}
    return {**like, "state": found, "param_groups": laid}


def _merged(stages: Sequence[Groups]) -> Groups:
    """Names by parameter group over all stages, as one process that has all layers has them."""
    return [
        list(dict.fromkeys(name for stage in stages for name in stage[number]))
        for number in range(len(stages[0]))
    ]
