"""Cross-entropy that never holds the whole matrix of logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from luthier.sizing.loss_chunks import chunk_rows, row_stride
from luthier.training.fused import kernels, run_on
from luthier.training.objective import IGNORED


@dataclass
class _Found:
    """What the chunks' gradients come to: of hidden states, of the weight, of a few of its rows."""

    hidden: Tensor | None
    weight: Tensor | None
    new: Tensor | None
    places: Tensor | None

    @property
    def wanted(self) -> bool:
        return any(one is not None for one in (self.hidden, self.weight, self.new))

    def take(self, grad: Tensor, weight: Tensor, part: Tensor, start: int) -> None:
        """Hand the gradient of the logits of a chunk, which begins at start, on."""
        if self.hidden is not None:
            torch.mm(grad, weight, out=self.hidden[start : start + part.shape[0]])
        if self.weight is not None:
            if _adds_wide(grad):
                # Added up within the product, in fp32: nothing is made beside it.
                into = torch.ops.aten.addmm.dtype_out
                into(self.weight, grad.t(), part, torch.float32, out=self.weight)
            else:
                self.weight += grad.t() @ part
        if self.new is not None and self.places is not None:
            self.new += grad.index_select(1, self.places).t() @ part


def _adds_wide(grad: Tensor) -> bool:
    """Whether a product of 16-bit matrices can be added to an fp32 one."""
    return grad.is_cuda and grad.dtype != torch.float32 and torch.version.hip is None


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
        need_new = new is not None and places is not None and ctx.needs_input_grad[6]
        found = _Found(
            torch.empty_like(hidden) if need_hidden else None,
            torch.zeros_like(weight, dtype=torch.float32) if need_weight else None,
            torch.zeros_like(new, dtype=torch.float32) if need_new and new is not None else None,
            places,
        )
        if need_hidden and weight.dtype != torch.float32 and run_on(weight.device):
            total = _over_16_bits(hidden, weight, targets, (multiplier, softcap), found)
        else:
            total = _over_fp32(hidden, weight, targets, (multiplier, softcap), found, filled=filled)
        ctx.save_for_backward(found.hidden, found.weight, found.new)
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
            # In one pass: another fp32 matrix of that size is not made.
            None
            if weight is None
            else torch.mul(weight, grad, out=weight.new_empty(0, dtype=ctx.weight_dtype)),
            None,
            None,
            None,
            None,
            None if new is None else (new * grad).to(ctx.new_dtype),
            None,
        )


Bend = tuple[float, float | None]
"""What logits are multiplied with, and their softcap."""


def _over_16_bits(hidden: Tensor, weight: Tensor, targets: Tensor, bend: Bend, found: _Found) -> Tensor:
    """The losses' sum, by a kernel that turns a chunk of 16-bit logits into their gradient in place.

    A negative target is a row that does not count.
    """
    count, words = hidden.shape[0], weight.shape[0]
    rows = min(count, chunk_rows(words, fused=True, trains_weight=found.weight is not None))
    # One place for all chunks: each is done with when the next one is made.
    room = hidden.new_empty(rows, row_stride(words))
    losses = torch.zeros(count, dtype=torch.float32, device=hidden.device)
    for start in range(0, count, max(1, rows)):
        part, wanted = hidden[start : start + rows], targets[start : start + rows]
        logits = room[: part.shape[0], :words]
        torch.mm(part, weight.t(), out=logits)
        each = losses[start : start + rows]
        kernels().cross_entropy_(logits, wanted, each, multiplier=bend[0], softcap=bend[1])
        found.take(logits, weight, part, start)
    return losses.sum()


def _over_fp32(
    hidden: Tensor, weight: Tensor, targets: Tensor, bend: Bend, found: _Found, *, filled: bool
) -> Tensor:
    """The losses' sum, in torch's own operations on a chunk of logits in fp32."""
    multiplier, softcap = bend
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    rows = chunk_rows(weight.shape[0], fused=False)
    for start in range(0, hidden.shape[0], rows):
        part, wanted = hidden[start : start + rows], targets[start : start + rows, None]
        counts = None
        if filled:
            counts = wanted != IGNORED
            wanted = wanted.clamp(min=0)
        logits = (part @ weight.t()).float()
        if multiplier != 1:
            logits *= multiplier
        if softcap:
            logits.div_(softcap).tanh_().mul_(softcap)
        slope = 1 - (logits / softcap).square_() if softcap and found.wanted else None
        norm = logits.logsumexp(dim=1, keepdim=True)
        losses = norm - logits.gather(1, wanted)
        total += (losses if counts is None else losses * counts).sum()
        if not found.wanted:
            continue
        grad = logits.sub_(norm).exp_()
        grad.scatter_add_(1, wanted, grad.new_full((), -1.0).expand_as(wanted))
        if slope is not None:
            grad *= slope
        if multiplier != 1:
            grad *= multiplier
        if counts is not None:
            grad *= counts
        found.take(grad.to(weight.dtype), weight, part, start)
    return total


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
