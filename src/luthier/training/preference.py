"""Log-probabilities of answers without the whole matrix of logits, and the losses over pairs of them.

DPO: Rafailov et al. 2023, arXiv 2305.18290; smoothed labels: Mitchell 2023, "A note on DPO with noisy
preferences". ORPO: Hong et al. 2024, arXiv 2403.07691. Both equal TRL's on the same tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from luthier.sizing.loss_chunks import chunk_rows


class _TokenLogProbs(torch.autograd.Function):
    """Log-softmax of ``hidden weight'`` at the targets, chunk by chunk.

    What a pair's tokens weigh is only known once all of them are added up, so the gradient cannot be
    made beside the values: the backward pass computes each chunk's logits again.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 (autograd passes by place)
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, multiplier: float, softcap: float | None
    ) -> Tensor:
        values = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        norms = torch.empty_like(values)
        for part in _parts(hidden, weight):
            logits = _logits(hidden[part], weight, multiplier, softcap)
            norms[part] = logits.logsumexp(dim=1)
            values[part] = logits.gather(1, targets[part, None]).squeeze(1) - norms[part]
        ctx.save_for_backward(hidden, weight, targets, norms)
        ctx.multiplier, ctx.softcap = multiplier, softcap
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        hidden, weight, targets, norms = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        for part in _parts(hidden, weight):
            logits = _logits(hidden[part], weight, ctx.multiplier, ctx.softcap)
            slope = 1 - (logits / ctx.softcap).square_() if ctx.softcap else None
            spread = logits.sub_(norms[part, None]).exp_().neg_()
            spread.scatter_add_(
                1, targets[part, None], torch.ones_like(targets[part, None], dtype=spread.dtype)
            )
            spread.mul_(grad[part, None] * ctx.multiplier)
            if slope is not None:
                spread *= slope
            spread = spread.to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = spread @ weight
            if grad_weight is not None:
                grad_weight += spread.t() @ hidden[part]
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None


def _parts(hidden: Tensor, weight: Tensor) -> list[slice]:
    """Rows that are worked on at once."""
    rows = chunk_rows(weight.shape[0], fused=weight.is_cuda)
    return [slice(start, start + rows) for start in range(0, hidden.shape[0], rows)]


def _logits(hidden: Tensor, weight: Tensor, multiplier: float, softcap: float | None) -> Tensor:
    logits = (hidden @ weight.t()).float()
    if multiplier != 1:
        logits *= multiplier
    if softcap:
        logits.div_(softcap).tanh_().mul_(softcap)
    return logits


def token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    multiplier: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """Log-probability of each target under ``softcap tanh(multiplier hidden weight' / softcap)``.

    hidden: [rows, width]; weight: [vocab, width]; targets: [rows] of int64. Returns [rows] in fp32, in
    nats. Memory: one chunk of logits, in either pass.
    """
    found: Tensor = _TokenLogProbs.apply(hidden, weight, targets, multiplier, softcap)  # type: ignore[no-untyped-call]
    return found


def dpo(
    chosen: Tensor, rejected: Tensor, reference: Tensor, *, beta: float, label_smoothing: float = 0.0
) -> Tensor:
    """Loss of each pair: [pairs].

    chosen, rejected: [pairs] log-probabilities of whole answers. reference: [pairs] of the reference
    model, its chosen minus its rejected ones. label_smoothing: share of the pairs that are taken to be
    the wrong way round.
    """
    margin = beta * (chosen - rejected - reference)
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def log_odds_ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Log of the ratio of the odds p / (1 - p) of two answers: [pairs].

    chosen, rejected: [pairs] mean log-probabilities a token, so that p is the geometric mean.
    """
    return (chosen - rejected) - (_log_of_rest(chosen) - _log_of_rest(rejected))


def _log_of_rest(log_probability: Tensor) -> Tensor:
    """``log(1 - p)``, exact near both ends; p is kept a breath below one."""
    below = log_probability.clamp(max=-torch.finfo(torch.float32).tiny)
    near_one = torch.log(-torch.expm1(below.clamp(min=-0.7)))
    return torch.where(below > -0.7, near_one, torch.log1p(-torch.exp(below.clamp(max=-0.7))))


def odds_ratio(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """ORPO's part of the loss that parts the answers of a pair: [pairs]."""
    return -beta * F.logsigmoid(log_odds_ratio(chosen, rejected))
