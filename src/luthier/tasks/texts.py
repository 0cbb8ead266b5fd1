"""A step's texts as one batch that is compared with itself, and its loss."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from luthier.data.contrastive import plan_alike, plan_contrastive
from luthier.errors import DataError
from luthier.models.embed import DenseLayers, embed
from luthier.models.vector_settings import VectorSettings
from luthier.schema.recipe import SimilarityChoice
from luthier.schema.rows import LabelRow, PairRow, Role
from luthier.sizing.padding import chunks_of
from luthier.tasks.encoded import Encoded, EncodedBatch
from luthier.tasks.planned import PlannedBatches, filled_on, plan_rows
from luthier.tasks.vectors import Reader
from luthier.training.contrastive import (
    batch_all_triplets,
    cosent,
    cosine_regression,
    in_batch_negatives,
    in_chunks,
    over_dimensions,
    triplet,
)
from luthier.training.objective import Loss, MicroBatch


@dataclass(frozen=True)
class TextsBatch:
    """One optimiser step's texts, which are compared with each other: a `training.objective.MicroBatch`.

    texts: all of them, longest first, no text twice. left, right: [rows] places of queries and positives
    (of the two texts of a pair; of a labelled text twice); wrong: [any] places of negatives; labels: [rows]
    scores, numbers of classes, or zeros. chunks: (first, end, width) of texts that go through the model at
    once; recompute: whether their activations are made anew in the backward pass.
    """

    texts: EncodedBatch
    left: Tensor
    right: Tensor
    wrong: Tensor
    labels: Tensor
    chunks: tuple[tuple[int, int, int], ...]
    recompute: bool
    apart: bool = False
    """Whether no row's positive stands in the batch a second time; else that is looked for."""

    @property
    def input_ids(self) -> Tensor:
        return self.texts.input_ids

    @property
    def position_ids(self) -> Tensor:
        return self.texts.position_ids

    @property
    def document_ids(self) -> Tensor:
        return self.texts.document_ids

    @property
    def pieces(self) -> int:
        """How many chunks the texts may be cut into; the loss is that of the whole batch all the same."""
        return len(self.texts.input_ids)

    def cut(self, most: int) -> list[TextsBatch]:
        """The same batch with at most so many texts at once."""
        lengths = self.texts.attention_mask.sum(dim=1).tolist()
        return [replace(self, chunks=chunks_of(lengths, most), recompute=True)]

    def to(self, device: torch.device) -> TextsBatch:
        moved = {name: getattr(self, name).to(device) for name in ("left", "right", "wrong", "labels")}
        return replace(self, texts=self.texts.to(device), **moved)


@dataclass(frozen=True)
class Texts:
    """A training row by places in the list of all its split's texts.

    A labelled text is its own right one, and its score the number of its class.
    """

    left: int
    right: int
    wrong: tuple[int, ...]
    score: float
    place: str


class TextBatches(PlannedBatches[tuple[int, ...]]):
    """A `training.source.BatchSource` whose every step is one batch of rows that are compared.

    rows: see `Texts`; encoded: each text once. texts_at_once: how many go through the model together.
    apart: for each row its own texts, where no two rows with an equal one may meet in a batch. alike:
    rows are labelled texts, of which a batch wants several of a class.
    """

    def __init__(
        self,
        rows: Sequence[Texts],
        encoded: Sequence[Encoded],
        texts: Sequence[str],
        reader: Reader,
        *,
        batch_size: int,
        texts_at_once: int,
        seed: int,
        apart: bool,
        alike: bool = False,
        most_wrong: int | None = None,
    ) -> None:
        self.rows_, self.encoded, self.texts, self.reader = rows, encoded, texts, reader
        self.batch_size, self.texts_at_once, self.seed = batch_size, texts_at_once, seed
        self.apart, self.alike, self.most_wrong = apart, alike, most_wrong

    def _plan(self, epoch: int) -> list[tuple[int, ...]]:
        if self.apart:
            return plan_contrastive(
                [(self.texts[row.left], self.texts[row.right]) for row in self.rows_],
                negatives=[[self.texts[place] for place in row.wrong] for row in self.rows_],
                batch_size=self.batch_size,
                seed=self.seed,
                epoch=epoch,
            )
        if self.alike:
            classes = [str(row.score) for row in self.rows_]
            return plan_alike(classes, batch_size=self.batch_size, seed=self.seed, epoch=epoch)
        lengths, at_once = [1] * len(self.rows_), self.batch_size
        steps = plan_rows(lengths, batch_size=at_once, micro_batch_size=at_once, seed=self.seed, epoch=epoch)
        return [tuple(chosen) for (chosen,) in steps]

    def place(self, index: int) -> str:
        return self.rows_[index].place

    def batches(self, epoch: int, step: int) -> list[TextsBatch]:
        return [self.batch(self.plan(epoch)[step], draw=random.Random(f"wrong {self.seed}/{epoch}/{step}"))]

    def batch(self, chosen: Sequence[int], *, draw: random.Random | None = None) -> TextsBatch:
        """The rows of these indices; draw: picks negatives where a row has more than are taken."""
        rows = [self.rows_[index] for index in chosen]
        wrong = [place for row in rows for place in self._wrong(row, draw)]
        left, right = [row.left for row in rows], [row.right for row in rows]
        unique = sorted({*left, *right, *wrong}, key=lambda place: (-len(self.encoded[place]), place))
        where = {place: i for i, place in enumerate(unique)}
        labels = torch.tensor([row.score for row in rows], dtype=torch.float32)
        lengths = [len(self.encoded[place]) for place in unique]
        return TextsBatch(
            self.reader.pad([self.encoded[place] for place in unique], torch.zeros(len(unique))),
            torch.tensor([where[place] for place in left]),
            torch.tensor([where[place] for place in right]),
            torch.tensor([where[place] for place in wrong], dtype=torch.long),
            labels,
            chunks_of(lengths, self.texts_at_once, filled=filled_on(self.reader.device)),
            recompute=len(unique) > self.texts_at_once,
            apart=len({*right, *wrong}) == len(right) + len(wrong),
        )

    def _wrong(self, row: Texts, draw: random.Random | None) -> Sequence[int]:
        most = self.most_wrong
        if most is None or len(row.wrong) <= most:
            return row.wrong
        return row.wrong[:most] if draw is None else draw.sample(row.wrong, most)


@dataclass(frozen=True)
class VectorObjective:
    """The loss of a batch of texts, times its rows: batches of other sizes weigh as their rows."""

    settings: VectorSettings
    dense: DenseLayers | None
    choice: SimilarityChoice
    dimensions: tuple[int, ...]

    def scope(self, model: Any) -> AbstractContextManager[None]:
        del model
        return nullcontext()

    def weight(self, batch: MicroBatch) -> float:
        return float(len(batch.labels))

    def __call__(self, model: Any, batch: MicroBatch) -> Loss:
        assert isinstance(batch, TextsBatch)
        inputs = batch.texts.inputs
        names = list(inputs)

        def encode(*parts: Tensor) -> Tensor:
            return embed(model, self.settings, dict(zip(names, parts, strict=True)), dense=self.dense)

        chunks = [
            tuple(inputs[name][first:end, :width] for name in names) for first, end, width in batch.chunks
        ]
        vectors = in_chunks(encode, chunks, recompute=batch.recompute)
        parts = [vectors[batch.left], vectors[batch.right]]
        if len(batch.wrong):
            parts.append(vectors[batch.wrong])

        def loss(given: Sequence[Tensor]) -> Tensor:
            return self._loss(given, batch)

        rows = len(batch.labels)
        mean = over_dimensions(loss, parts, self.dimensions) if self.dimensions else loss(parts)
        return Loss(mean * rows, float(rows))

    def _loss(self, parts: Sequence[Tensor], batch: TextsBatch) -> Tensor:
        choice, (left, right, *wrong) = self.choice, parts
        match choice.loss:
            case "cosent":
                return cosent(left, right, batch.labels, scale=choice.scale)
            case "cosine":
                return cosine_regression(left, right, batch.labels)
            case "triplet":
                assert choice.margin is not None
                return triplet(left, right, wrong[0], margin=choice.margin, distance=choice.distance)
            case "batch-all-triplet":
                assert choice.margin is not None
                return batch_all_triplets(left, batch.labels, margin=choice.margin, distance=choice.distance)
            case _:
                return in_batch_negatives(
                    left,
                    right,
                    wrong[0] if wrong else None,
                    scale=choice.scale,
                    symmetric=choice.symmetric,
                    excluded=None if batch.apart else right_too(batch),
                )


def right_too(batch: TextsBatch) -> Tensor | None:
    """[rows, rows + negatives]: documents of the batch that are a row's own positive once more.

    None where there are none, as where batches are planned without equal texts.
    """
    documents = torch.cat((batch.right, batch.wrong))
    same = batch.right[:, None] == documents[None, :]
    same = same.fill_diagonal_(fill_value=False)
    return same if bool(same.any()) else None


def texts_of(
    rows: Sequence[Any], settings: VectorSettings, choice: SimilarityChoice
) -> tuple[list[str], list[Texts]]:
    """Every text of the rows once, its prompt before it, and the rows as places in that list.

    A row with several positives becomes one row each; for the triplet loss one for each negative too.
    Raises DataError, with file and line, for an empty text.
    """
    places: dict[str, int] = {}
    classes: dict[str, int] = {}
    found: list[Texts] = []

    def place(text: str, role: Role, row: Any) -> int:
        if not text.strip():
            raise DataError(
                f"the {'text' if role == 'similarity' else role} is empty",
                file=row.file,
                line=row.line,
                hint="fill it in, or remove the row",
            )
        return places.setdefault(settings.prompt(role) + text, len(places))

    low, high = choice.score_range or (0.0, 1.0)
    for row in rows:
        where = f"{row.file}:{row.line}"
        if isinstance(row, PairRow):
            score = (row.score - low) / (high - low) if choice.loss == "cosine" else row.score
            pair = place(row.first, "similarity", row), place(row.second, "similarity", row)
            found.append(Texts(*pair, (), score, where))
            continue
        if isinstance(row, LabelRow):
            own = place(row.text, "similarity", row)
            found.append(Texts(own, own, (), classes.setdefault(row.labels[0], len(classes)), where))
            continue
        query = place(row.query, "query", row)
        wrong = tuple(place(text, "document", row) for text in row.negatives)
        for positive in row.positives:
            right = place(positive, "document", row)
            if choice.loss == "triplet":
                found += [Texts(query, right, (one,), 0.0, where) for one in wrong]
            else:
                found.append(Texts(query, right, wrong, 0.0, where))
    return list(places), found
