"""What Liger's kernels and fused losses make and keep, on tensors without data.

Sources: liger-kernel 0.8.5 (rms_norm, swiglu, rope, fused_linear_cross_entropy) and TRL 1.16
(``ChunkedLogProbFunction``). Their backward kernels write into the tensors that they are given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from luthier.sizing.loss_chunks import chunk_rows, row_stride

MULTIPROCESSORS = 132
"""Of an H100: the norm's backward kernel has one row of partial sums for each, where its scale is trained."""
TILE_TOKENS, TILE_WORDS = 4096, 32768
"""Sides of the tile of logits in TRL's loss."""


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor) -> Tensor:
        out = torch.empty_like(states)
        scales = states.new_empty(states.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(states, weight, scales)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None]:
        _, weight, _ = ctx.saved_tensors
        if not ctx.needs_input_grad[1]:
            return grads[0], None
        partial = weight.new_empty((MULTIPROCESSORS, weight.shape[0]), dtype=torch.float32)
        return grads[0], partial.sum(0).to(weight.dtype)


class _GatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return torch.empty_like(gate)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        del grads
        gate, up = ctx.saved_tensors
        return gate, up


class _LinearLoss(torch.autograd.Function):
    """Chunks of logits whose gradient overwrites them; the hidden states' gradient is made beside."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        tokens, width = hidden.shape
        words = weight.shape[0]
        rows = min(tokens, fused_loss_rows(tokens, width, words))
        grad_hidden = torch.zeros_like(hidden)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        each = hidden.new_zeros(tokens, dtype=torch.float32)
        logits = hidden.new_empty((rows, words))
        del logits
        ctx.save_for_backward(grad_hidden, grad_weight)
        return each.sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None]:
        del grads
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden, grad_weight


class _OwnLoss(torch.autograd.Function):
    """Our own loss on CUDA: one chunk of 16-bit logits at a time, each in the place of the one before."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        trains = ctx.needs_input_grad[1]
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if trains else None
        rows = min(hidden.shape[0], chunk_rows(weight.shape[0], fused=True, trains_weight=trains))
        logits = hidden.new_empty((rows, row_stride(weight.shape[0])))
        losses = hidden.new_zeros(hidden.shape[0], dtype=torch.float32)
        del logits
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None]:
        hidden, weight = ctx.saved_tensors
        found = (hidden * grads[0]).to(hidden.dtype)
        return found, None if weight is None else torch.empty_like(weight, dtype=ctx.weight_dtype)


def own_loss(hidden: Tensor, weight: Tensor) -> Tensor:
    """Our own loss. hidden: [trained tokens, width]; weight: [words, width]."""
    loss: Tensor = _OwnLoss.apply(hidden, weight)  # type: ignore[no-untyped-call]
    return loss


def fused_loss_rows(tokens: int, width: int, words: int) -> int:
    """Tokens of one chunk in Liger's fused loss: a power of two with as many logits as hidden states."""
    chunks = -(-words // width)
    return 1 << max(0, (-(-tokens // chunks) - 1).bit_length())


class _TiledLoss(torch.autograd.Function):
    """One tile of logits, computed again in the backward pass, whose gradients are gathered in fp32."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, half: torch.dtype) -> Tensor:
        tokens = hidden.shape[0]
        sums = [hidden.new_empty(tokens, dtype=torch.float32) for _ in range(7)]
        tile = hidden.new_empty((min(tokens, TILE_TOKENS), TILE_WORDS), dtype=half)
        part = hidden[:TILE_TOKENS].to(half), weight[:TILE_WORDS].to(half)
        del tile, part
        found = sums[0] - sums[1]
        ctx.save_for_backward(hidden, weight, sums[2])
        ctx.half = half
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        del grads
        hidden, weight, _ = ctx.saved_tensors
        grad_hidden = torch.zeros_like(hidden, dtype=torch.float32)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        tile = hidden.new_empty((min(hidden.shape[0], TILE_TOKENS), TILE_WORDS), dtype=ctx.half)
        part = hidden[:TILE_TOKENS].to(ctx.half), weight[:TILE_WORDS].to(ctx.half)
        del part
        out = grad_hidden.to(hidden.dtype), None if grad_weight is None else grad_weight.to(weight.dtype)
        del tile
        return *out, None


def linear_loss(hidden: Tensor, weight: Tensor) -> Tensor:
    """Liger's fused loss. hidden: [tokens, width]; weight: [words, width]."""
    loss: Tensor = _LinearLoss.apply(hidden, weight)  # type: ignore[no-untyped-call]
    return loss


def tiled_loss(hidden: Tensor, weight: Tensor, half: torch.dtype) -> Tensor:
    """TRL's loss over tokens that all carry it. hidden: [tokens, width]; half: type of the products."""
    # The places that carry loss are picked, which copies the hidden states.
    chosen: Tensor = _TiledLoss.apply(hidden * 1, weight, half)  # type: ignore[no-untyped-call]
    return chosen.sum()


def fuse_layers(model: nn.Module) -> None:
    """Exchange norms and gated MLPs for their fused forms, in place."""
    for module in model.modules():
        kind = type(module).__name__
        if kind.endswith("RMSNorm"):
            module.forward = MethodType(_norm, module)
        elif kind.endswith("MLP") and hasattr(module, "gate_proj"):
            module.forward = MethodType(_mlp, module)


def _norm(self: Any, hidden_states: Tensor) -> Tensor:
    out: Tensor = _Norm.apply(hidden_states, self.weight)  # type: ignore[no-untyped-call]
    return out


def _mlp(self: Any, x: Tensor) -> Tensor:
    product = _GatedProduct.apply(self.gate_proj(x), self.up_proj(x))  # type: ignore[no-untyped-call]
    out: Tensor = self.down_proj(product)
    return out


@contextmanager
def rotating_in_place(model: nn.Module) -> Iterator[None]:
    """Within the block the model's rotary embedding writes into queries and keys.

    transformers has no door for it: its attention calls a function of its own module.
    """
    import sys

    places = {
        sys.modules[type(module).__module__]
        for module in model.modules()
        if type(module).__name__.endswith("Attention")
    }
    before = {place: vars(place)["apply_rotary_pos_emb"] for place in places}
    for place in places:
        vars(place)["apply_rotary_pos_emb"] = lambda q, k, *_args, **_kwargs: (q, k)
    try:
        yield
    finally:
        for place, function in before.items():
            vars(place)["apply_rotary_pos_emb"] = function
