"""Queries with their candidates as batches of pairs, and the losses over their scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.errors import DataError, Unsupported
from luthier.models.rerank import PREFIX, SUFFIX, Batches, Pair, RerankSettings, logits_of_pairs
from luthier.planning.pairs import LISTS, demand_candidates
from luthier.schema.recipe import RerankingChoice
from luthier.schema.rows import PairRow, RankingRow
from luthier.tasks.encoded import Encoded, EncodedBatch, encode, pad
from luthier.tasks.planned import PlannedBatches, Rows, by_length, plan_rows
from luthier.training.objective import Loss, MicroBatch
from luthier.training.ranking import (
    binary_cross_entropy,
    lambda_loss,
    list_distillation,
    list_net,
    margin_mse,
    squared_error,
)

if TYPE_CHECKING:
    from luthier.data.tokenizer import FileTokenizer

TOKENS_AT_ONCE = 16_384


@dataclass(frozen=True)
class PairReader:
    """A tokenizer with what the model's form asks of it."""

    tokenizer: FileTokenizer
    settings: RerankSettings
    segments: bool
    device: torch.device
    most: int | None
    """Longest pair in tokens."""

    def encode(self, pairs: Sequence[Pair], *, most: int | None = None) -> list[Encoded]:
        """Pairs as the model reads them, cut to the longest that it (or most) allows."""
        limits = [limit for limit in (most, self.most) if limit is not None]
        longest = min(limits, default=None)
        if self.settings.form == "classification":
            return encode(list(pairs), self.tokenizer, most=longest)
        before, after = self.tokenizer.encode(PREFIX), self.tokenizer.encode(SUFFIX)
        room = None if longest is None else max(1, longest - len(before) - len(after))
        found = []
        for query, document in pairs:
            asked = f"<Instruct>: {self.settings.instruction}\n<Query>: {query}\n<Document>: {document}"
            ids = [*before, *self.tokenizer.encode(asked)[:room], *after]
            found.append(Encoded(ids, [0] * len(ids)))
        return found

    def pad(self, encoded: Sequence[Encoded], labels: Tensor) -> EncodedBatch:
        return pad(encoded, labels, pad_id=self.tokenizer.pad_id, segments=self.segments)

    def batches(self, tokens: int = TOKENS_AT_ONCE) -> Batches:
        """Pairs to padded batches of like length on the device."""

        def make(pairs: Sequence[Pair]) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
            encoded = self.encode(pairs)
            for group in by_length([len(one) for one in encoded], tokens):
                batch = self.pad([encoded[i] for i in group], torch.zeros(len(group)))
                yield group, batch.to(self.device).inputs

        return make


def with_tokens(settings: RerankSettings, tokenizer: FileTokenizer) -> RerankSettings:
    """The settings with the ids of yes and no. Raises Unsupported for a tokenizer without ChatML's turns."""
    if settings.form != "yes-no":
        return settings
    ids = {word: tokenizer.encode(word) for word in ("yes", "no", "<|im_start|>", "<|im_end|>")}
    if long := [word for word, found in ids.items() if len(found) != 1]:
        raise Unsupported(
            f"the tokenizer has no single token {long[0]!r}, which the yes-no form needs",
            file=tokenizer.directory,
            hint="set reranking.form: classification",
        )
    yes, no = ids["yes"][0], ids["no"][0]
    return replace(
        settings,
        yes=yes if settings.yes is None else settings.yes,
        no=no if settings.no is None else settings.no,
    )


@dataclass(frozen=True)
class Candidates:
    """One query with its candidates and what each is worth."""

    pairs: tuple[Pair, ...]
    worth: tuple[float, ...]
    place: str


def candidates_of(rows: Sequence[Any], choice: RerankingChoice) -> list[Candidates]:
    """Training rows as queries with candidates; for a pointwise loss a scored pair is a list of one.

    Raises DataError, with file and line, for an empty text, and where no query has two candidates for a
    loss that compares them.
    """
    found: list[Candidates] = []
    lists = choice.loss in LISTS
    low, high = choice.score_range or (0.0, 1.0)
    grouped: dict[str, list[PairRow]] = {}
    for row in rows:
        if isinstance(row, PairRow):
            _demand_text(row, row.first, row.second)
            key = row.first if lists else f"{len(grouped)}"
            grouped.setdefault(key, []).append(row)
            continue
        assert isinstance(row, RankingRow)
        wrong = row.negatives[: choice.negatives]
        _demand_text(row, row.query, *row.positives, *wrong)
        texts = (*row.positives, *wrong)
        worth = (1.0,) * len(row.positives) + (0.0,) * len(wrong)
        found.append(Candidates(tuple((row.query, one) for one in texts), worth, f"{row.file}:{row.line}"))
    for own in grouped.values():
        scores = [row.score if lists else (row.score - low) / (high - low) for row in own]
        pairs = tuple((row.first, row.second) for row in own)
        found.append(Candidates(pairs, tuple(scores), f"{own[0].file}:{own[0].line}"))
    if not lists:
        return found
    demand_candidates(rows, str(choice.loss), choice.negatives)
    return [one for one in found if len(one.pairs) > 1]


def _demand_text(row: Any, *texts: str) -> None:
    if not all(text.strip() for text in texts):
        raise DataError(
            "a text of this row is empty", file=row.file, line=row.line, hint="fill it in, or remove the row"
        )


@dataclass(frozen=True)
class ListBatch:
    """Some queries with all their candidates: a `training.objective.MicroBatch`.

    pairs: all of them, query after query. labels: [queries, candidates] worth, 0 where there is none.
    places: [queries, candidates] of the pairs; mask: true where there is a candidate.
    """

    pairs: EncodedBatch
    labels: Tensor
    places: Tensor
    mask: Tensor

    @property
    def input_ids(self) -> Tensor:
        return self.pairs.input_ids

    @property
    def position_ids(self) -> Tensor:
        return self.pairs.position_ids

    @property
    def document_ids(self) -> Tensor:
        return self.pairs.document_ids

    @property
    def pieces(self) -> int:
        """How many parts it can be cut into: its queries."""
        return len(self.labels)

    def cut(self, most: int) -> list[ListBatch]:
        """Parts of at most so many queries; their losses add up to the whole's."""
        counts = self.mask.sum(dim=1).tolist()
        ends = [0]
        for count in counts:
            ends.append(ends[-1] + count)
        found = []
        for start in range(0, len(counts), most):
            stop = min(start + most, len(counts))
            kept, rows = slice(ends[start], ends[stop]), slice(start, stop)
            width = int(self.pairs.attention_mask[kept].sum(dim=1).max())
            longest = max(counts[rows])
            types = self.pairs.token_type_ids
            pairs = EncodedBatch(
                self.pairs.input_ids[kept, :width],
                self.pairs.attention_mask[kept, :width],
                self.pairs.labels[kept],
                None if types is None else types[kept, :width],
            )
            mask = self.mask[rows, :longest]
            places = (self.places[rows, :longest] - ends[start]).clamp(min=0)
            found.append(ListBatch(pairs, self.labels[rows, :longest], places, mask))
        return found

    def to(self, device: torch.device) -> ListBatch:
        moved = {name: getattr(self, name).to(device) for name in ("labels", "places", "mask")}
        return replace(self, pairs=self.pairs.to(device), **moved)


class ListBatches(PlannedBatches[Rows]):
    """A `training.source.BatchSource` over queries with candidates, in an order that the seed decides.

    pairs_at_once: most pairs of a micro-batch (a query's candidates are never parted).
    """

    def __init__(
        self,
        lists: Sequence[Candidates],
        reader: PairReader,
        *,
        batch_size: int,
        pairs_at_once: int,
        seed: int,
        most: int | None,
    ) -> None:
        self.lists, self.reader = lists, reader
        self.batch_size, self.pairs_at_once, self.seed = batch_size, pairs_at_once, seed
        flat = reader.encode([pair for one in lists for pair in one.pairs], most=most)
        self.encoded: list[list[Encoded]] = []
        start = 0
        for one in lists:
            self.encoded.append(flat[start : start + len(one.pairs)])
            start += len(one.pairs)
        self.lengths = [max(map(len, own)) for own in self.encoded]

    def _plan(self, epoch: int) -> list[Rows]:
        at_once = self.batch_size
        steps = plan_rows(
            self.lengths, batch_size=at_once, micro_batch_size=at_once, seed=self.seed, epoch=epoch
        )
        return [chosen for (chosen,) in steps]

    def place(self, index: int) -> str:
        return self.lists[index].place

    def batches(self, epoch: int, step: int) -> list[ListBatch]:
        return [self.batch(chosen) for chosen in self.parts(self.plan(epoch)[step])]

    def parts(self, chosen: Sequence[int]) -> list[list[int]]:
        """Lists in micro-batches of at most so many pairs."""
        found: list[list[int]] = []
        held = 0
        for index in chosen:
            count = len(self.encoded[index])
            if not found or held + count > self.pairs_at_once:
                found.append([])
                held = 0
            found[-1].append(index)
            held += count
        return found

    def in_order(self) -> list[ListBatch]:
        """All lists once, longest first."""
        order = sorted(range(len(self.lists)), key=lambda index: -self.lengths[index])
        return [self.batch(chosen) for chosen in self.parts(order)]

    def batch(self, chosen: Sequence[int]) -> ListBatch:
        """The lists of these indices as one batch."""
        counts = torch.tensor([len(self.encoded[index]) for index in chosen])
        mask = torch.arange(int(counts.max()))[None] < counts[:, None]
        places = torch.zeros(mask.shape, dtype=torch.long)
        places[mask] = torch.arange(int(counts.sum()))
        labels = torch.zeros(mask.shape)
        labels[mask] = torch.tensor([worth for index in chosen for worth in self.lists[index].worth])
        flat = [one for index in chosen for one in self.encoded[index]]
        return ListBatch(self.reader.pad(flat, torch.zeros(len(flat))), labels, places, mask)


@dataclass(frozen=True)
class RankingObjective:
    """The loss of some queries: its sum over pairs (pointwise, lambda, margins) or over queries."""

    settings: RerankSettings
    choice: RerankingChoice

    def scope(self, model: Any) -> AbstractContextManager[None]:
        del model
        return nullcontext()

    def weight(self, batch: MicroBatch) -> float:
        assert isinstance(batch, ListBatch)
        match self.choice.loss:
            case "lambda":
                better = batch.labels[:, :, None] > batch.labels[:, None, :]
                return float((better & batch.mask[:, :, None] & batch.mask[:, None, :]).sum())
            case "margin-mse":
                return float(batch.mask[:, 1:].sum())
            case "list-net" | "distillation":
                return float(len(batch.labels))
            case _:
                return float(batch.mask.sum())

    def __call__(self, model: Any, batch: MicroBatch) -> Loss:
        assert isinstance(batch, ListBatch)
        logits = logits_of_pairs(model, self.settings, batch.pairs.inputs)
        scores = logits[batch.places]
        weight = self.weight(batch)
        if weight == 0:  # every candidate is worth the same: nothing to learn, but a graph all the same
            return Loss(logits.sum() * 0.0, 0.0)
        return Loss(self._mean(scores, batch) * weight, weight)

    def _mean(self, scores: Tensor, batch: ListBatch) -> Tensor:
        labels, mask = batch.labels, batch.mask
        match self.choice.loss:
            case "lambda":
                return lambda_loss(scores, labels, mask)
            case "list-net":
                return list_net(scores, labels, mask)
            case "margin-mse":
                return margin_mse(scores, labels, mask)
            case "distillation":
                return list_distillation(scores, labels, mask, temperature=self.choice.temperature)
            case "mse":
                return squared_error(scores[mask], labels[mask])
            case _:
                return binary_cross_entropy(scores[mask], labels[mask])
