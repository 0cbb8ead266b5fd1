"""Losses over sentence vectors against sentence-transformers' own; cached gradients against plain ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.training.contrastive import (
    batch_all_triplets,
    cosent,
    cosine_regression,
    in_batch_negatives,
    in_chunks,
    over_dimensions,
    triplet,
)


def vectors(*shapes: tuple[int, int], seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=draw).requires_grad_() for shape in shapes]


class Given(torch.nn.Module):
    """A sentence-transformers model that gives the vectors it is handed."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["vectors"]}

    def get_embedding_dimension(self) -> None:
        return None


def same(ours: Tensor, theirs: Tensor, leaves: Sequence[Tensor]) -> None:
    """Equal in value and in gradient."""
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for mine, other in zip(
        torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("hard", [0, 1, 2])
def test_in_batch_negatives(symmetric: bool, hard: int) -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    queries, positives, *negatives = vectors(*[(6, 8)] * (2 + hard))
    directions = ("query_to_doc", "doc_to_query") if symmetric else ("query_to_doc",)
    mode = "per_direction" if symmetric else "joint"
    theirs = losses.MultipleNegativesRankingLoss(
        Given(), scale=15.0, directions=directions, partition_mode=mode
    )
    ours = in_batch_negatives(
        queries, positives, torch.cat(negatives) if negatives else None, scale=15.0, symmetric=symmetric
    )
    leaves = [queries, positives, *negatives]
    same(ours, theirs.compute_loss_from_embeddings(leaves, torch.empty(0)), leaves)


def test_a_document_that_is_right_too_does_not_count_as_wrong() -> None:
    queries, positives = vectors((4, 8), (4, 8))
    excluded = torch.zeros(4, 4, dtype=torch.bool)
    excluded[0, 1] = excluded[1, 0] = True
    loss = in_batch_negatives(queries, positives, excluded=excluded)
    (gradient,) = torch.autograd.grad(loss, positives, retain_graph=True)
    alone = in_batch_negatives(queries[[0, 2, 3]], positives[[0, 2, 3]])
    logits = torch.nn.functional.cosine_similarity(queries[:, None], positives[None], dim=-1) * 20
    row = torch.logsumexp(logits[0, [0, 2, 3]], 0) - logits[0, 0]
    rest = [torch.logsumexp(logits[1, [1, 2, 3]], 0) - logits[1, 1]]
    rest += [torch.logsumexp(logits[i], 0) - logits[i, i] for i in (2, 3)]
    torch.testing.assert_close(loss, torch.stack([row, *rest]).mean())
    assert gradient.isfinite().all()
    assert alone != loss


def test_cosent() -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    left, right = vectors((12, 8), (12, 8))
    scores = torch.tensor([0.0, 1, 2, 2, 2, 5, 4, 4, 0, 3, 1, 5])
    theirs = losses.CoSENTLoss(Given(), scale=20.0).compute_loss_from_embeddings([left, right], scores)
    same(cosent(left, right, scores), theirs, [left, right])


def test_cosine_regression() -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    left, right = vectors((5, 8), (5, 8))
    scores = torch.tensor([0.0, 0.2, 0.5, 1.0, -0.3])
    theirs = losses.CosineSimilarityLoss(Given()).compute_loss_from_embeddings([left, right], scores)
    same(cosine_regression(left, right, scores), theirs, [left, right])


@pytest.mark.parametrize(("distance", "margin"), [("cosine", 0.2), ("euclidean", 5.0)])
def test_triplet(distance: Any, margin: float) -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    leaves = vectors(*[(6, 8)] * 3)
    metric = getattr(losses.TripletDistanceMetric, distance.upper())
    theirs = losses.TripletLoss(Given(), distance_metric=metric, triplet_margin=margin)
    ours = triplet(*leaves, margin=margin, distance=distance)
    same(ours, theirs.compute_loss_from_embeddings(leaves, torch.empty(0)), leaves)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_all_triplets_of_labelled_texts(distance: Any) -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    (given,) = vectors((9, 8))
    given = torch.cat((given, given[:1]))  # a text that stands twice is at no distance
    labels, margin = torch.tensor([0, 1, 2, 0, 1, 1, 3, 0, 2, 0]), 0.3 if distance == "cosine" else 2.0
    measure = losses.BatchHardTripletLossDistanceFunction
    far = measure.cosine_distance if distance == "cosine" else measure.eucledian_distance
    theirs = losses.BatchAllTripletLoss(Given(), distance_metric=far, margin=margin)
    ours = batch_all_triplets(given, labels, margin=margin, distance=distance)
    assert ours > 0
    same(ours, theirs.batch_all_triplet_loss(labels, given), [given])
    for alone in (torch.arange(10), torch.zeros(10)):
        assert batch_all_triplets(given, alone, margin=margin, distance=distance) == 0


def test_over_dimensions() -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    leaves = vectors((6, 8), (6, 8))
    given = Given()
    theirs = losses.MatryoshkaLoss(
        given, losses.MultipleNegativesRankingLoss(given), [8, 4, 2], [1.0, 0.5, 0.25]
    )
    ours = over_dimensions(lambda v: in_batch_negatives(*v), leaves, [8, 4, 2], [1.0, 0.5, 0.25])
    same(ours, theirs([{"vectors": one} for one in leaves], torch.empty(0)), leaves)


class Net(torch.nn.Module):
    """Dropout and two layers, and a count of rows seen with a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(6, 16), torch.nn.Linear(16, 4)
        self.alive = self.most = 0

    def forward(self, rows: Tensor) -> Tensor:
        hidden = torch.nn.functional.dropout(self.first(rows).tanh(), 0.3, self.training)
        return self.second(hidden)


def test_cached_gradients_are_the_plain_ones() -> None:
    torch.manual_seed(0)
    net = Net()
    rows = torch.randn(20, 6)
    chunks = [(rows[i : i + 4],) for i in range(0, 20, 4)]
    found = []
    for recompute in (False, True):
        torch.manual_seed(1)  # the same dropout in both
        net.zero_grad()
        out = in_chunks(net, chunks, recompute=recompute)
        loss = in_batch_negatives(out[:10], out[10:])
        loss.backward()
        found.append((loss.detach(), [p.grad.clone() for p in net.parameters()]))
    (plain, grads), (cached, again) = found
    torch.testing.assert_close(cached, plain, rtol=0, atol=0)
    for one, two in zip(grads, again, strict=True):
        torch.testing.assert_close(two, one, rtol=0, atol=1e-7)
    assert any(g.abs().max() > 1e-3 for g in grads)


def test_cached_gradients_hold_one_chunk_at_a_time() -> None:
    """Activations saved for the backward pass at one time, counted in numbers."""
    net = Net()
    rows = torch.randn(64, 6)

    def held(recompute: bool) -> int:
        alive = most = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal alive, most
            alive += tensor.numel()
            most = max(most, alive)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            in_chunks(net, [(rows[i : i + 4],) for i in range(0, 64, 4)], recompute=recompute)
        return most

    assert held(True) < held(False) / 5
