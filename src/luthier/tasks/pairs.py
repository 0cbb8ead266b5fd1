"""Pairs of answers as batches of documents, and the loss over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from luthier.data.collate import IGNORED, collate
from luthier.schema.recipe import PreferenceChoice
from luthier.schema.rows import PairTokens
from luthier.tasks.causal import CausalObjective
from luthier.tasks.planned import PlannedBatches, Rows, plan_rows
from luthier.training.objective import Flat, Loss, MicroBatch, flatten
from luthier.training.preference import dpo, odds_ratio


@dataclass(frozen=True)
class PairBatch:
    """Some pairs, each as two rows, the chosen one first: a `training.objective.MicroBatch`.

    answers: [rows, length], true at the tokens of an answer; labels may hold more of a chosen row.
    reference: [pairs] log-probability of chosen minus rejected under the reference, or None where it is
    asked for with the batch. share: one over the chosen rows' trained tokens of the whole step, times
    its pairs: cross-entropies weighed by it add up to a mean over tokens, whatever the cut.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    document_ids: Tensor
    answers: Tensor
    reference: Tensor | None
    share: float

    @property
    def pieces(self) -> int:
        """How many parts it can be cut into: its pairs."""
        return len(self.input_ids) // 2

    def cut(self, most: int) -> list[PairBatch]:
        """Parts of at most so many pairs; their losses add up to the whole's."""
        found = []
        for start in range(0, self.pieces, most):
            rows = slice(2 * start, 2 * (start + most))
            width = max(1, int((self.document_ids[rows] > 0).sum(dim=1).max()))
            names = ("input_ids", "labels", "position_ids", "document_ids", "answers")
            parts = {name: getattr(self, name)[rows, :width] for name in names}
            reference = None if self.reference is None else self.reference[start : start + most]
            found.append(replace(self, **parts, reference=reference))
        return found

    def to(self, device: torch.device) -> PairBatch:
        names = ("input_ids", "labels", "position_ids", "document_ids", "answers")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        reference = None if self.reference is None else self.reference.to(device, non_blocking=True)
        return replace(self, **moved, reference=reference)


class PairBatches(PlannedBatches[list[Rows]]):
    """A `training.source.BatchSource` over rendered pairs, in an order that the seed decides.

    whole: whether the chosen rows' prompts carry cross-entropy too. references: [pairs], see `PairBatch`.
    """

    def __init__(
        self,
        pairs: Sequence[PairTokens],
        *,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        pad_id: int,
        whole: bool = False,
        references: Tensor | None = None,
    ) -> None:
        self.pairs, self.whole, self.references = pairs, whole, references
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.seed, self.pad_id = seed, pad_id
        self.lengths = [len(pair.chosen.ids) + len(pair.rejected.ids) for pair in pairs]

    def _plan(self, epoch: int) -> list[list[Rows]]:
        return plan_rows(
            self.lengths,
            batch_size=self.batch_size,
            micro_batch_size=self.micro_batch_size,
            seed=self.seed,
            epoch=epoch,
        )

    def place(self, index: int) -> str:
        row = self.pairs[index].chosen
        return f"{row.file}:{row.line}"

    def batches(self, epoch: int, step: int) -> list[PairBatch]:
        chosen = self.plan(epoch)[step]
        share = self._share([index for micro in chosen for index in micro])
        return [self.batch(micro, share) for micro in chosen]

    def placed(self) -> Iterator[tuple[list[int], PairBatch]]:
        """All pairs once, longest first, with the places they have."""
        order = sorted(range(len(self.pairs)), key=lambda index: -self.lengths[index])
        share = self._share(order)
        for start in range(0, len(order), self.micro_batch_size):
            places = order[start : start + self.micro_batch_size]
            yield places, self.batch(places, share)

    def in_order(self) -> list[PairBatch]:
        """The batches of ``placed``."""
        return [batch for _, batch in self.placed()]

    def _share(self, chosen: Sequence[int]) -> float:
        tokens = 0
        for index in chosen:
            row = self.pairs[index].chosen
            tokens += len(row.ids) - 1 if self.whole else int(row.trained[1:].sum())
        return len(chosen) / max(1, tokens)

    def batch(self, chosen: Sequence[int], share: float) -> PairBatch:
        """The pairs of these indices as one batch."""
        sides = [side for index in chosen for side in (self.pairs[index].chosen, self.pairs[index].rejected)]
        found = collate([[side] for side in sides], pad_id=self.pad_id)
        answers = found.labels != IGNORED
        labels = found.labels
        if self.whole:
            labels = labels.clone()
            better = found.document_ids[::2] > 0
            better[:, 0] = False
            labels[::2] = torch.where(better, found.input_ids[::2], IGNORED)
        reference = None if self.references is None else self.references[torch.tensor(chosen)]
        return PairBatch(
            found.input_ids, labels, found.position_ids, found.document_ids, answers, reference, share
        )


@dataclass(frozen=True)
class PairObjective:
    """The loss of some pairs: its sum over them.

    untouched: makes the model answer as the reference within the block, without gradients; needed where
    batches bring no reference of their own (DPO).
    """

    causal: CausalObjective
    choice: PreferenceChoice
    untouched: Callable[[Any], AbstractContextManager[None]] | None = None

    def scope(self, model: Any) -> AbstractContextManager[None]:
        return self.causal.scope(model)

    def weight(self, batch: MicroBatch) -> float:
        assert isinstance(batch, PairBatch)
        return float(batch.pieces)

    def answers(self, model: Any, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Log-probability and tokens of each answer: [rows], chosen and rejected in turn."""
        flat = flatten(batch)
        place, inside = _answer_places(flat, batch)
        return _added(self.causal.log_probs(model, flat), place, inside, len(batch.input_ids))

    def __call__(self, model: Any, batch: MicroBatch) -> Loss:
        assert isinstance(batch, PairBatch)
        flat = flatten(batch)
        place, inside = _answer_places(flat, batch)
        rows = len(batch.input_ids)
        reference = None
        if self.choice.loss == "dpo":
            reference = batch.reference
            if reference is None:
                assert self.untouched is not None, "batches bring no reference and there is none to ask"
                with self.untouched(model):
                    told, _ = _added(self.causal.log_probs(model, flat), place, inside, rows)
                reference = told[::2] - told[1::2]
        each = self.causal.log_probs(model, flat)
        sums, counts = _added(each, place, inside, rows)
        cross_entropy = -each[place % 2 == 0].sum() * batch.share
        choice = self.choice
        if reference is None:
            means = sums / counts
            parted = odds_ratio(means[::2], means[1::2], beta=choice.beta).sum()
            return Loss(cross_entropy + parted, float(batch.pieces))
        total = dpo(
            sums[::2], sums[1::2], reference, beta=choice.beta, label_smoothing=choice.label_smoothing
        ).sum()
        if choice.sft:
            total = total + choice.sft * cross_entropy
        return Loss(total, float(batch.pieces))


def _answer_places(flat: Flat, batch: PairBatch) -> tuple[Tensor, Tensor]:
    """Of each trained token: the row that it stands in, and whether it belongs to an answer."""
    device = flat.sources.device
    ends = torch.tensor(flat.lengths, device=device).cumsum(0)
    place = torch.searchsorted(ends, flat.sources + 1, right=True)
    return place, batch.answers[batch.document_ids > 0][flat.sources + 1]


def _added(each: Tensor, place: Tensor, inside: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Answer tokens added up by row: sums and counts, [rows] each."""
    sums = each.new_zeros(rows).index_add(0, place, each * inside)
    counts = each.new_zeros(rows).index_add(0, place, inside.to(each.dtype))
    return sums, counts
