"""The causal objective over stages: several processes that each hold some of the model's layers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from luthier.models.exchange import Group
from luthier.models.stage import Stage
from luthier.tasks.causal import CausalObjective
from luthier.training.objective import IGNORED, ROUND, Flat, Loss, MicroBatch, flatten


class Laid(NamedTuple):
    """Micro-batches of one length: [micro-batches, tokens] but for ends: [micro-batches, documents + 1]."""

    ids: Tensor
    positions: Tensor
    ends: Tensor
    targets: Tensor
    """The trained token that each place predicts; -100 where there is none."""
    longest: int


@dataclass(frozen=True)
class PipelineObjective:
    """Micro-batches one behind another through the stages (torch's 1F1B schedule), losses from the last.

    Every process of the group gives the same micro-batches and is given the same loss.
    """

    plain: CausalObjective
    stage: Stage
    group: Group
    width: int
    """Of the hidden states."""
    dtype: torch.dtype

    def scope(self, model: Any) -> AbstractContextManager[None]:
        return self.plain.scope(model)

    def weight(self, batch: MicroBatch) -> float:
        return self.plain.weight(batch)

    def __call__(self, model: Any, batch: MicroBatch) -> Loss:
        """The loss of one micro-batch, without a graph."""
        flat = flatten(batch)
        laid = lay([flat])
        with torch.no_grad(), self.scope(model):
            x = laid.ids
            if self.stage.entry is not None:
                x = torch.empty(*x.shape, self.width, dtype=self.dtype, device=x.device)
                dist.recv(x, self._rank(-1), group=self.group)
            out = self.stage(x, positions=laid.positions, ends=laid.ends, longest=laid.longest)
            if self._last:
                total = self._loss(out, laid.targets)
            else:
                total = torch.zeros((), device=x.device)
                dist.send(out.contiguous(), self._rank(1), group=self.group)
        return Loss(self._told(total), float(flat.targets.numel()))

    def step(self, model: Any, batches: Sequence[MicroBatch], weight: float) -> Tensor:
        """Add up gradients and losses of all micro-batches, both by weight."""
        from torch.distributed import pipelining

        laid = lay([flatten(batch) for batch in batches])
        hidden = torch.empty(
            1, laid.ids.shape[1], self.width, dtype=self.dtype, device="meta", requires_grad=True
        )
        count, place = self.group.size(), self.group.rank()
        given = laid.ids[:1].to("meta") if place == 0 else hidden
        stage = pipelining.PipelineStage(
            self.stage,
            place,
            count,
            laid.ids.device,
            input_args=(given,),
            output_args=(hidden,),
            group=self.group,
        )
        kind = pipelining.Schedule1F1B if len(batches) >= count else pipelining.ScheduleGPipe
        schedule = kind(
            stage,
            len(batches),
            loss_fn=lambda out, targets: self._loss(out, targets) / weight,
            scale_grads=False,
        )
        losses: list[Tensor] = []
        wanted: dict[str, Any] = {"target": laid.targets, "losses": losses} if self._last else {}
        with self.scope(model):
            schedule.step(
                *([laid.ids] if place == 0 else []),
                **wanted,
                return_outputs=False,
                positions=laid.positions,
                ends=laid.ends,
                longest=laid.longest,
            )
        total = torch.zeros((), device=laid.ids.device)
        return self._told(total + sum(loss.detach() for loss in losses))

    @property
    def _last(self) -> bool:
        return self.group.rank() == self.group.size() - 1

    def _rank(self, away: int) -> int:
        """A neighbour's number among all processes."""
        return dist.get_global_rank(self.group, self.group.rank() + away)

    def _loss(self, out: Tensor, targets: Tensor) -> Tensor:
        """Of last hidden states [1, tokens, width]."""
        counted = targets[0] != IGNORED
        return self.plain.summed(out[0][counted], targets[0][counted])

    def _told(self, total: Tensor) -> Tensor:
        """The last stage's number, in all of them."""
        dist.broadcast(total, dist.get_global_rank(self.group, self.group.size() - 1), group=self.group)
        return total


def pipeline_objective(plain: CausalObjective, stage: Stage, group: Group) -> PipelineObjective:
    """The same objective over the stages of a group. The model needs a head that is known in closed form."""
    assert plain.documents
    assert plain.head is not None
    stage.tensors, stage.kernel = plain.tensors, plain.kernel
    dtype, width = plain.head.weight.dtype, plain.head.weight.shape[1]
    if group.rank() < group.size() - 1:
        plain = replace(plain, head=None)  # its weight is another stage's
    return PipelineObjective(plain, stage, group, width, dtype)


def lay(flats: Sequence[Flat]) -> Laid:
    """Flat micro-batches filled up to the longest of them, with documents that carry no loss."""
    most = max(flat.ids.shape[1] for flat in flats)
    most += -most % ROUND
    missing = [most - flat.ids.shape[1] for flat in flats]
    ends = [
        torch.tensor((0, *flat.lengths, more)).cumsum(0, dtype=torch.int32)
        for flat, more in zip(flats, missing, strict=True)
    ]
    widest = max(map(len, ends))
    device = flats[0].ids.device
    targets = torch.full((len(flats), most), IGNORED, device=device)
    for row, flat in zip(targets, flats, strict=True):
        row[flat.sources] = flat.targets
    pairs = list(zip(flats, missing, strict=True))
    return Laid(
        torch.cat([F.pad(flat.ids, (0, more)) for flat, more in pairs]),
        torch.cat([F.pad(flat.positions, (0, more)) for flat, more in pairs]),
        torch.stack([F.pad(one, (0, widest - len(one)), value=most) for one in ends]).to(device),
        targets,
        max(max(*flat.lengths, more) for flat, more in pairs),
    )
