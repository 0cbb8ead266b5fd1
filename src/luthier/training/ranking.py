"""Losses over relevance scores of a query's candidates.

Pointwise losses take scores and labels of the same shape. Listwise ones take [queries, candidates] with
a mask that is true where there is a candidate. All return the mean as an fp32 scalar, and equal those
of sentence-transformers on the same scores.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Weighting = Literal["ndcg-loss2++", "lambdarank", "none"]
_MU = 10.0
"""Share of NDCG-Loss2 in NDCG-Loss2++; the paper's value."""


def binary_cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the logistic of each score with its label, which lies within 0 to 1."""
    return F.binary_cross_entropy_with_logits(scores.float(), labels.float())


def squared_error(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean squared difference of scores and labels."""
    return F.mse_loss(scores.float(), labels.float())


def margin_mse(scores: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of the margins between the first candidate and each other one.

    scores, teacher: [queries, candidates]. Hofstaetter et al. 2020, arXiv 2010.02666.
    """
    own = scores[:, :1].float() - scores[:, 1:].float()
    wanted = teacher[:, :1].float() - teacher[:, 1:].float()
    return F.mse_loss(own[mask[:, 1:]], wanted[mask[:, 1:]])


def list_distillation(scores: Tensor, teacher: Tensor, mask: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of the candidates' distribution from the teacher's, in nats.

    Both are softmaxes over a query's candidates; multiplied by the squared temperature, so that its
    choice leaves the size of the gradient alone (Lin et al. 2020, arXiv 2010.11386).
    """
    own = _log_probabilities(scores, mask, temperature)
    wanted = _log_probabilities(teacher, mask, temperature)
    terms = (wanted.exp() * (wanted - own)).masked_fill(~mask, 0.0)
    return terms.sum() / len(scores) * temperature**2


def _log_probabilities(scores: Tensor, mask: Tensor, temperature: float) -> Tensor:
    logits = (scores.float() / temperature).masked_fill(~mask, torch.finfo(torch.float32).min)
    return logits.log_softmax(dim=1)


def list_net(scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of the two softmaxes over a query's candidates (Cao et al. 2007, ICML)."""
    own = _log_probabilities(scores, mask, 1.0)
    wanted = _log_probabilities(labels, mask, 1.0).exp()
    return -(wanted * own).masked_fill(~mask, 0.0).sum() / len(scores)


def lambda_loss(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor,
    *,
    weighting: Weighting = "ndcg-loss2++",
    k: int | None = None,
    sigma: float = 1.0,
) -> Tensor:
    """Pairs in the wrong order, each weighted by what it costs in nDCG, in bits.

    Wang et al. 2018, The LambdaLoss Framework, CIKM, doi 10.1145/3269206.3271784. labels: relevance
    grades from 0 up. k: only pairs with one of the first k places; all when None. Mean over the pairs
    of different grade.
    """
    n = scores.shape[1]
    own = scores.float().masked_fill(~mask, float("-inf"))
    ranked, order = own.sort(dim=1, descending=True)
    held = mask.gather(1, order)
    grades = labels.float().gather(1, order).masked_fill(~held, 0.0)
    places = torch.arange(1, n + 1, device=scores.device)
    discount = torch.log2(1.0 + places.float())
    best = (torch.exp2(labels.float().masked_fill(~mask, 0.0)) - 1).sort(dim=1, descending=True).values
    ideal = (best / discount)[:, :k].sum(dim=1, keepdim=True).clamp(min=1e-10)
    gain = (torch.exp2(grades) - 1) / ideal
    wrong = (grades[:, :, None] > grades[:, None, :]) & held[:, :, None] & held[:, None, :]
    if k is not None:
        early = places <= k
        wrong &= early[:, None] | early[None, :]
    gaps = ranked[:, :, None] - ranked[:, None, :]
    gaps = gaps.masked_fill(~wrong, 0.0)
    terms = _weights(weighting, gain, discount) * F.logsigmoid(sigma * gaps) / math.log(2)
    return -terms[wrong].sum() / max(1, int(wrong.sum()))


def _weights(weighting: Weighting, gain: Tensor, discount: Tensor) -> Tensor:
    """What a pair of places costs: [queries, candidates, candidates]."""
    if weighting == "none":
        return torch.ones((), device=gain.device)
    worth = (gain[:, :, None] - gain[:, None, :]).abs()
    share = 1 / discount
    swap = (share[:, None] - share[None, :]).abs() * worth
    if weighting == "lambdarank":
        return swap
    # The bound of NDCG-Loss2: discounts at the distance of the two places, not at the places.
    n = gain.shape[1]
    apart = (torch.arange(n)[:, None] - torch.arange(n)[None, :]).abs().to(gain.device)
    share = torch.cat((share, 1 / torch.log2(torch.tensor([n + 2.0], device=gain.device))))
    bound = (share[(apart - 1).clamp(min=0)] - share[apart]).abs().masked_fill(apart == 0, 0.0)
    return _MU * bound * worth + swap
