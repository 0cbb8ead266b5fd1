"""Losses over sentence vectors, and the way to large batches on small memory.

Every loss takes vectors [rows, dims] of any floating type, computes in fp32 and returns the mean over
rows as an fp32 scalar. They equal those of sentence-transformers on the same vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Distance = Literal["cosine", "euclidean"]


def cosine_matrix(left: Tensor, right: Tensor) -> Tensor:
    """Cosine of every pair: [rows, dims] and [others, dims] to fp32 [rows, others]."""
    return F.normalize(left.float(), dim=-1) @ F.normalize(right.float(), dim=-1).t()


def in_batch_negatives(
    queries: Tensor,
    positives: Tensor,
    negatives: Tensor | None = None,
    *,
    scale: float = 20.0,
    symmetric: bool = False,
    excluded: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of finding each query's positive among all documents of the batch.

    Known as InfoNCE (van den Oord et al. 2018, arXiv 1807.03748) and multiple negatives ranking loss
    (Henderson et al. 2017, arXiv 1705.00652). positives: [rows, dims], row i belongs to query i.
    negatives: [any, dims], documents that are wrong for every query. scale: inverse temperature.
    symmetric: the mean with the other direction, each positive finding its query among all queries.
    excluded: [rows, rows + negatives] bool, documents that must not count as wrong for a query.
    """
    documents = positives if negatives is None else torch.cat((positives, negatives))
    logits = cosine_matrix(queries, documents) * scale
    if excluded is not None:
        logits = logits.masked_fill(excluded, float("-inf"))
    targets = torch.arange(len(queries), device=logits.device)
    loss = F.cross_entropy(logits, targets)
    if not symmetric:
        return loss
    back = logits[:, : len(queries)].t()
    return (loss + F.cross_entropy(back, targets)) / 2


def cosent(left: Tensor, right: Tensor, scores: Tensor, *, scale: float = 20.0) -> Tensor:
    """Pairs that were scored higher shall have the higher cosine (CoSENT).

    ``log(1 + sum exp(scale (cos_i - cos_j)))`` over all i, j with score_i < score_j; scores: [rows] in
    any unit. Described by Huang et al. 2024, IEEE/ACM TASLP, doi 10.1109/TASLP.2024.3402087.
    """
    cosines = F.cosine_similarity(left.float(), right.float()) * scale
    gaps = cosines[:, None] - cosines[None, :]
    lower = scores[:, None] < scores[None, :]
    return torch.logsumexp(torch.cat((gaps.new_zeros(1), gaps[lower])), dim=0)


def cosine_regression(left: Tensor, right: Tensor, scores: Tensor) -> Tensor:
    """Mean squared difference of each pair's cosine and its score, which is to lie within -1 to 1."""
    return F.mse_loss(F.cosine_similarity(left.float(), right.float()), scores.float())


def triplet(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    *,
    margin: float,
    distance: Distance = "cosine",
) -> Tensor:
    """The positive shall be nearer than the negative by a margin (Hermans et al. 2017, arXiv 1703.07737)."""
    if distance == "cosine":
        near = 1 - F.cosine_similarity(anchors.float(), positives.float())
        far = 1 - F.cosine_similarity(anchors.float(), negatives.float())
    else:
        near = torch.linalg.vector_norm(anchors.float() - positives.float(), dim=-1)
        far = torch.linalg.vector_norm(anchors.float() - negatives.float(), dim=-1)
    return F.relu(near - far + margin).mean()


def batch_all_triplets(
    vectors: Tensor, labels: Tensor, *, margin: float, distance: Distance = "cosine"
) -> Tensor:
    """The triplet loss over all triplets that a batch of labelled texts holds.

    Mean over those triplets that still cost something (Hermans et al. 2017, arXiv 1703.07737, section 3);
    zero where there are none. labels: [rows], equal for texts of one class.
    """
    far = _distances(vectors.float(), distance)
    same = labels[:, None] == labels[None, :]
    anchors, positives = (same & ~torch.eye(len(labels), dtype=torch.bool, device=same.device)).nonzero().T
    # One line for each pair of a class against all of the batch, so memory is that of pairs times rows.
    gaps = (far[anchors, positives][:, None] - far[anchors] + margin).masked_fill(same[anchors], 0.0)
    costs = F.relu(gaps)
    return costs.sum() / (costs > 0).sum().clamp_min(1)


def _distances(vectors: Tensor, distance: Distance) -> Tensor:
    """Of each vector to each other one: [rows, rows]."""
    if distance == "cosine":
        return 1 - cosine_matrix(vectors, vectors)
    products = vectors @ vectors.t()
    squares = products.diagonal()
    squared = (squares[:, None] - 2 * products + squares[None, :]).clamp_min(0)
    none = squared == 0  # where the root has no gradient
    return (squared + none * 1e-16).sqrt().masked_fill(none, 0.0)


def over_dimensions(
    loss: Callable[[Sequence[Tensor]], Tensor],
    vectors: Sequence[Tensor],
    dimensions: Sequence[int],
    weights: Sequence[float] | None = None,
) -> Tensor:
    """Sum of a loss over the first dimensions of the vectors, so that these can be cut later.

    Matryoshka representation learning (Kusupati et al. 2022, arXiv 2205.13147). Every cut is brought
    to unit length again. weights: one for each of dimensions, 1 when not given.
    """
    shares = weights if weights is not None else [1.0] * len(dimensions)
    parts = [
        share * loss([F.normalize(one.float()[:, :size], dim=-1) for one in vectors])
        for size, share in zip(dimensions, shares, strict=True)
    ]
    return torch.stack(parts).sum()


def in_chunks(
    encode: Callable[..., Tensor], inputs: Sequence[tuple[Tensor, ...]], *, recompute: bool
) -> Tensor:
    """Vectors of several chunks of texts, one below the other: [all rows, dims].

    recompute: keep no activations of any chunk but compute each chunk again in the backward pass, when
    its own gradient is known. Memory is then that of one chunk, however large the batch, for one more
    forward pass; the gradient is the same, dropout included (GradCache, Gao et al. 2021, arXiv
    2101.06983).
    """
    if not recompute or not torch.is_grad_enabled():
        return torch.cat([encode(*chunk) for chunk in inputs])
    return torch.cat([checkpoint(encode, *chunk, use_reentrant=False) for chunk in inputs])
