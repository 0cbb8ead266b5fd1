"""Marks between the layers of a backward pass, so that its moments can be told apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from luthier.checks.trace.recorder import Recorder


def mark_layers(model: Any, recorder: Recorder) -> None:
    """Begin phase ``layerNUMBER`` where a layer's backward pass begins, and name gradients as such."""
    for number, layer in enumerate(layers_of(model)):
        layer.register_forward_hook(_on_output(recorder, f"layer{number}"))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_named(recorder))


def layers_of(model: Any) -> nn.ModuleList:
    """The blocks of a model: its longest list of modules."""
    found = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(found, key=len)


def replace_forward(layers: Iterable[nn.Module], make: Callable[[Any], Any]) -> None:
    """Exchange each layer's forward method for ``make(method)``, inside of its checkpoint where it has one.

    transformers wraps the method itself in the checkpoint (5.23) or the call around it (before).
    """
    for layer in layers:
        own = type(layer).forward
        inner = make(MethodType(getattr(own, "__wrapped__", own), layer))
        if getattr(layer, "gradient_checkpointing", False):
            vars(layer)["gradient_checkpointing"] = False
            inner = partial(checkpoint, inner, use_reentrant=False, preserve_rng_state=False)
        layer.forward = inner


def _on_output(recorder: Recorder, phase: str) -> Any:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        if isinstance(states, Tensor) and states.requires_grad:
            states.register_hook(lambda _: recorder.timeline.mark(phase))  # type: ignore[no-untyped-call]

    return hook


def _named(recorder: Recorder) -> Any:
    def hook(parameter: Tensor) -> None:
        if parameter.grad is not None:
            recorder.rename(parameter.grad, "gradients")

    return hook
