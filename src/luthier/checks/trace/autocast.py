"""torch.autocast for tensors without data, which have no autocast rules of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from luthier.checks.trace.marks import replace_forward

_NARROW = {F.linear, torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.__matmul__}


class Autocast(TorchFunctionMode):
    """Products in 16 bits, with the weights' narrow copies kept until the region ends, as on CUDA."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.kept: dict[int, Tensor] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        if func in _NARROW:
            args = tuple(self._narrow(value) for value in args)
        return func(*args, **(kwargs or {}))

    def _narrow(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(self.dtype)
        kept = self.kept if self.kept is not None else {}
        if id(value) not in kept:
            kept[id(value)] = value.to(self.dtype)
        return kept[id(value)]

    @contextmanager
    def region(self) -> Iterator[None]:
        """A whole forward pass; parts computed again later are regions of their own."""
        outer, self.kept = self.kept, {} if self.kept is None else self.kept
        try:
            with self:
                yield
        finally:
            self.kept = outer


def cast_layers(layers: Iterable[nn.Module], mode: Autocast) -> None:
    """Let each layer be a region, since a checkpointed one runs again outside of the whole."""

    def within(forward: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            with mode.region():
                return forward(*args, **kwargs)

        return run

    replace_forward(layers, within)
