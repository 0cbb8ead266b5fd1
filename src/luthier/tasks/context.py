"""The causal objective where several processes hold each row together, a run of its tokens each."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Any

import torch.distributed as dist
from torch.nn import functional as F

from luthier.models.context import attending_together
from luthier.models.exchange import Group, added
from luthier.tasks.causal import CausalObjective
from luthier.training.objective import ROUND, Flat, Loss, MicroBatch, flatten


@dataclass(frozen=True)
class ContextObjective(CausalObjective):
    """`CausalObjective` whose value is that of whole rows, in every process of the group.

    Its gradients are those of the process's own tokens: added up over the group they are those of the rows.
    """

    group: Group | None = None

    def scope(self, model: Any) -> AbstractContextManager[None]:
        return attending_together(model)

    def __call__(self, model: Any, batch: MicroBatch) -> Loss:
        assert self.group is not None
        flat = flatten(batch)
        own = run_of(flat, dist.get_rank(self.group), dist.get_world_size(self.group))
        total = self.summed(self.states(model, own), own.targets)
        return Loss(added(total, self.group), float(flat.targets.numel()))

    def document_arguments(self, flat: Flat) -> dict[str, Any]:
        return {**super().document_arguments(flat), "context_group": self.group}

    @property
    def recordable(self) -> bool:
        return False


def context_objective(plain: CausalObjective, group: Group) -> ContextObjective:
    """The same objective over the processes of a group. The model's attention must take documents."""
    assert plain.documents
    return ContextObjective(**{f.name: getattr(plain, f.name) for f in fields(plain)}, group=group)


def run_of(flat: Flat, place: int, count: int) -> Flat:
    """The part of a process in a flat batch: one of count equal runs of its tokens, in order.

    A document that carries no loss fills the tokens up; lengths stay those of the whole. Sources count from
    the run's first token: the token that they predict may stand in the next run.
    """
    missing = -flat.ids.shape[1] % (ROUND * count)
    ids = F.pad(flat.ids, (0, missing))
    positions = F.pad(flat.positions, (0, missing))
    each = ids.shape[1] // count
    start = place * each
    own = (flat.sources >= start) & (flat.sources < start + each)
    lengths = (*flat.lengths, missing) if missing else flat.lengths
    run = slice(start, start + each)
    return Flat(ids[:, run], positions[:, run], lengths, flat.sources[own] - start, flat.targets[own])
