"""Cross-entropy that never holds the whole matrix of logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from luthier.sizing.loss_chunks import chunk_rows
from luthier.training.objective import IGNORED


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies of ``hidden weight'`` against targets, chunk by chunk.

    The gradient is computed beside the loss while a chunk's logits are there, so that they are
    neither kept nor computed twice.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 (autograd passes by place)
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        multiplier: float,
        softcap: float | None,
        filled: bool,
        new: Tensor | None,
        places: Tensor | None,
    ) -> Tensor:
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        grad_new = None
        if new is not None and places is not None and ctx.needs_input_grad[6]:
            grad_new = torch.zeros_like(new, dtype=torch.float32)
        fused = weight.is_cuda and need_hidden and weight.dtype != torch.float32
        rows = chunk_rows(weight.shape[0], fused=fused, trains_weight=need_weight)
        for start in range(0, hidden.shape[0], rows):
            part, wanted = hidden[start : start + rows], targets[start : start + rows, None]
            counts = None
            if filled:
                counts = wanted != IGNORED
                wanted = wanted.clamp(min=0)
            logits = part @ weight.t()
            if fused:
                grad = logits
                total += _slope(multiplier, softcap)(logits, wanted, counts)
                _spread(grad, weight, part, grad_hidden, grad_weight, start)
                _gather(grad, part, grad_new, places)
                continue
            logits = logits.float()
            if multiplier != 1:
                logits *= multiplier
            if softcap:
                logits.div_(softcap).tanh_().mul_(softcap)
            slope = 1 - (logits / softcap).square_() if softcap and (need_hidden or need_weight) else None
            norm = logits.logsumexp(dim=1, keepdim=True)
            losses = norm - logits.gather(1, wanted)
            total += (losses if counts is None else losses * counts).sum()
            if not (need_hidden or need_weight or grad_new is not None):
                continue
            grad = logits.sub_(norm).exp_()
            grad.scatter_add_(1, wanted, grad.new_full((), -1.0).expand_as(wanted))
            if slope is not None:
                grad *= slope
            if multiplier != 1:
                grad *= multiplier
            if counts is not None:
                grad *= counts
            grad = grad.to(weight.dtype)
            _spread(grad, weight, part, grad_hidden, grad_weight, start)
            _gather(grad, part, grad_new, places)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_new)
        ctx.weight_dtype = weight.dtype
        ctx.new_dtype = None if new is None else new.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        hidden, weight, new = ctx.saved_tensors
        return (
            None if hidden is None else (hidden * grad).to(hidden.dtype),
            None if weight is None else (weight * grad).to(ctx.weight_dtype),
            None,
            None,
            None,
            None,
            None if new is None else (new * grad).to(ctx.new_dtype),
            None,
        )


def _spread(  # noqa: PLR0917 (private)
    grad: Tensor,
    weight: Tensor,
    part: Tensor,
    grad_hidden: Tensor | None,
    grad_weight: Tensor | None,
    start: int,
) -> None:
    """Hand the gradient of a chunk's logits on to hidden states and weight."""
    if grad_hidden is not None:
        torch.mm(grad, weight, out=grad_hidden[start : start + part.shape[0]])
    if grad_weight is not None:
        grad_weight += grad.t() @ part


def _gather(grad: Tensor, part: Tensor, grad_new: Tensor | None, places: Tensor | None) -> None:
    """Hand the gradient of a chunk's logits on to a few rows of the weight."""
    if grad_new is not None and places is not None:
        grad_new += grad.index_select(1, places).t() @ part


@cache
def _slope(multiplier: float, softcap: float | None) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """A kernel that turns 16-bit logits into their gradient in place and returns the sum of the losses.

    Its third argument says which rows count; all where there is none.
    """

    def slope(logits: Tensor, wanted: Tensor, counts: Tensor | None) -> Tensor:
        values = logits.float() * multiplier
        bent: Tensor | float = 1.0
        if softcap:
            values = torch.tanh(values / softcap)
            bent = 1 - values.square()
            values = values * softcap
        norm = values.logsumexp(dim=1, keepdim=True)
        losses = norm - values.gather(1, wanted)
        chosen = torch.arange(logits.shape[1], device=logits.device)[None] == wanted
        grad = ((values - norm).exp() - chosen.float()) * bent * multiplier
        if counts is not None:
            losses, grad = losses * counts, grad * counts
        logits.copy_(grad)
        return losses.sum()

    compiled = torch.compile(slope)

    def run(logits: Tensor, wanted: Tensor, counts: Tensor | None) -> Tensor:
        from torch._dynamo import maybe_mark_dynamic  # takes a second to import

        mark: Any = maybe_mark_dynamic
        mark(logits, 0)
        mark(wanted, 0)
        if counts is not None:
            mark(counts, 0)
        return compiled(logits, wanted, counts)

    return run


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    multiplier: float = 1.0,
    softcap: float | None = None,
    filled: bool = False,
    new: Tensor | None = None,
    places: Tensor | None = None,
) -> Tensor:
    """Sum over rows of the cross-entropy of ``softcap tanh(multiplier hidden weight' / softcap)``.

    hidden: [rows, width]; weight: [vocab, width]; targets: [rows] of int64; filled: some may be -100:
    these rows do not count. new: values of the weight's rows at places, which get the gradient of these rows
    where the weight itself gets none. Returns an fp32 scalar, in nats. Memory beside the gradient of hidden:
    one chunk of logits.
    """
    loss: Tensor = _LinearCrossEntropy.apply(
        hidden, weight, targets, multiplier, softcap, filled, new, places
    )  # type: ignore[no-untyped-call]
    return loss


class _Picked(torch.autograd.Function):
    """Rows of a matrix; backward each row's gradient is put back to its place, without adding anything up."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.shape = states.shape
        return states.index_select(0, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (places,) = ctx.saved_tensors
        return grads[0].new_zeros(ctx.shape).index_copy_(0, places, grads[0]), None


def picked(states: Tensor, places: Tensor) -> Tensor:
    """Rows of states [tokens, width] at the places [rows], each once or with no gradient."""
    found: Tensor = _Picked.apply(states, places)  # type: ignore[no-untyped-call]
    return found
