"""Losses over relevance scores against sentence-transformers' own on the same scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.training.ranking import (
    Weighting,
    binary_cross_entropy,
    lambda_loss,
    list_distillation,
    list_net,
    margin_mse,
    squared_error,
)

COUNTS = (4, 2, 5, 3)
GRADES = [[2.0, 0, 1, 0], [1.0, 0], [0.0, 3, 1, 1, 0], [0.0, 0, 0]]


class Scorer(torch.nn.Module):
    """Stands for a CrossEncoder: gives the scores it was made with, in the order asked for."""

    num_labels = 1
    device = torch.device("cpu")

    def __init__(self, scores: Tensor) -> None:
        torch.nn.Module.__init__(self)
        self.scores = scores

    def preprocess(self, pairs: list[tuple[str, str]], **_: Any) -> dict[str, Tensor]:
        return {"places": torch.tensor([int(document) for _, document in pairs])}

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"scores": self.scores[features["places"]][:, None]}


def lists() -> tuple[Tensor, Tensor, Tensor, Tensor, list[list[str]]]:
    """Flat scores, and scores, grades and mask as [queries, candidates], and the candidates' names."""
    torch.manual_seed(3)
    flat = torch.randn(sum(COUNTS)).requires_grad_()
    mask = torch.arange(max(COUNTS))[None] < torch.tensor(COUNTS)[:, None]
    places = torch.zeros_like(mask, dtype=torch.long)
    places[mask] = torch.arange(len(flat))
    grades = torch.zeros(mask.shape)
    grades[mask] = torch.tensor([grade for row in GRADES for grade in row])
    names = [[str(i) for i in row[held].tolist()] for row, held in zip(places, mask, strict=True)]
    return flat, flat[places], grades, mask, names


def same(ours: Tensor, theirs: Tensor, leaf: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    (mine,) = torch.autograd.grad(ours, leaf, retain_graph=True)
    (other,) = torch.autograd.grad(theirs, leaf)
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [None, 2])
@pytest.mark.parametrize("weighting", ["ndcg-loss2++", "lambdarank", "none"])
def test_lambda_loss(weighting: Weighting, k: int | None) -> None:
    losses = pytest.importorskip("sentence_transformers.cross_encoder.losses")
    schemes = {
        "ndcg-loss2++": losses.NDCGLoss2PPScheme(),
        "lambdarank": losses.LambdaRankScheme(),
        "none": losses.NoWeightingScheme(),
    }
    flat, scores, grades, mask, names = lists()
    theirs = losses.LambdaLoss(Scorer(flat), weighting_scheme=schemes[weighting], k=k, mini_batch_size=-1)
    labels = [torch.tensor(row) for row in GRADES]
    ours = lambda_loss(scores, grades, mask, weighting=weighting, k=k)
    same(ours, theirs([["q"] * len(names), names], labels), flat)


def test_list_net() -> None:
    losses = pytest.importorskip("sentence_transformers.cross_encoder.losses")
    flat, scores, grades, mask, names = lists()
    theirs = losses.ListNetLoss(Scorer(flat), mini_batch_size=-1)
    labels = [torch.tensor(row) for row in GRADES]
    same(list_net(scores, grades, mask), theirs([["q"] * len(names), names], labels), flat)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_list_distillation(temperature: float) -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    torch.manual_seed(0)
    own, teacher = torch.randn(3, 4).requires_grad_(), torch.randn(3, 4) * 3
    # Theirs compares vectors by dot product: a query of 1 gives each document's number as its score.
    theirs = losses.DistillKLDivLoss(Given(), temperature=temperature)
    columns = [torch.ones(3, 1), *(own[:, i : i + 1] for i in range(4))]
    mask = torch.ones(3, 4, dtype=torch.bool)
    ours = list_distillation(own, teacher, mask, temperature=temperature)
    same(ours, theirs([{"vectors": c} for c in columns], teacher), own)


class Given(torch.nn.Module):
    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["vectors"]}


def test_margin_mse() -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    torch.manual_seed(0)
    own, teacher = torch.randn(3, 4).requires_grad_(), torch.randn(3, 4) * 3
    columns = [torch.ones(3, 1), *(own[:, i : i + 1] for i in range(4))]
    theirs = losses.MarginMSELoss(Given())([{"vectors": c} for c in columns], teacher)
    same(margin_mse(own, teacher, torch.ones(3, 4, dtype=torch.bool)), theirs, own)


def test_pointwise() -> None:
    library = pytest.importorskip("sentence_transformers.cross_encoder")
    losses = pytest.importorskip("sentence_transformers.cross_encoder.losses")
    torch.manual_seed(0)
    scores, labels = torch.randn(6).requires_grad_(), torch.rand(6)
    pairs = [["q"] * 6, [str(i) for i in range(6)]]
    model = type("Model", (Scorer, library.CrossEncoder), {})(scores)  # these two take nothing else
    same(binary_cross_entropy(scores, labels), losses.BinaryCrossEntropyLoss(model)(pairs, labels), scores)
    same(squared_error(scores, labels), losses.MSELoss(model)(pairs, labels), scores)


def test_padding_counts_nowhere() -> None:
    """A wider mask changes no listwise loss."""
    _, scores, grades, mask, _ = lists()
    wider = torch.nn.functional.pad(scores, (0, 3), value=9.0)
    more = torch.nn.functional.pad(grades, (0, 3), value=5.0)
    held = torch.nn.functional.pad(mask, (0, 3))
    for loss in (lambda_loss, list_net, list_distillation, margin_mse):
        torch.testing.assert_close(loss(wider, more, held), loss(scores, grades, mask))
