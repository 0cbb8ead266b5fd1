"""What each layer keeps for its backward pass, as training.layers has it, on tensors without data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint

from luthier.checks.trace.compiled import compile_layers
from luthier.checks.trace.recorder import Recorder
from luthier.schema.estimate import TrainingShape
from luthier.training.layers import KEPT

TRACED = "luthier_traced::flash"
"""What stands in for the attention kernels among those."""


def keep_layers(layers: nn.ModuleList, shape: TrainingShape, recorder: Recorder) -> None:
    """Let the layers run compiled or not and keep what the shape says, in place."""
    mode = shape.activation_checkpointing
    many = len(layers) if shape.recomputed_layers is None else min(shape.recomputed_layers, len(layers))
    again = list(layers)[:many] if mode != "none" else []
    others = [layer for layer in layers if layer not in again]
    if shape.compiled:
        compile_layers(others, recorder)
        compile_layers(again, recorder, None if mode == "offload" else partial(_policy, mode == "selective"))
    for layer in again:
        inner = layer.forward
        if mode == "offload":
            layer.forward = partial(_offloaded, inner)
        elif not shape.compiled:
            layer.forward = partial(checkpoint, inner, use_reentrant=False, preserve_rng_state=False)


def _policy(selective: bool, name: str) -> CheckpointPolicy:
    """Whether the result of an operation is kept where a checkpoint lies inside of a graph."""
    kept = selective and (name in KEPT or name == TRACED)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


class _Offloaded(torch.autograd.Function):
    """A layer whose input leaves the device and comes back for the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, anchor: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        del anchor
        ctx.run, ctx.shape, ctx.dtype = run, hidden.shape, hidden.dtype
        with torch.no_grad():
            return run(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden = torch.empty(ctx.shape, dtype=ctx.dtype, device="meta").requires_grad_(True)
        with torch.enable_grad():
            out = ctx.run(hidden)
        torch.autograd.backward(out, grads[0])
        return hidden.grad, None, None


def _offloaded(run: Callable[..., Any], hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    def only(states: Tensor) -> Tensor:
        out = run(states, *args, **kwargs)
        first: Tensor = out[0] if isinstance(out, tuple) else out
        return first

    anchor = torch.empty(0, device="meta", requires_grad=True)
    apply: Any = _Offloaded.apply
    return apply(hidden, anchor, only)
