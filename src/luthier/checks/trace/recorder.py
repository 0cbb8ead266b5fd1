"""Record every storage that a piece of torch code makes and drops, on tensors without data."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

from luthier.checks.trace.events import Timeline

Hidden = Callable[[tuple[Any, ...], dict[str, Any], Any], int]
"""Bytes that the target's kernel takes for itself while an operation runs."""

_ask = torch.ops.aten._local_scalar_dense.default


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the storages of every operation's outputs, and when they die.

    hidden: operation name -> bytes that it allocates unseen. flops: products are counted by torch's own
    formulas. ``tag`` names what new storages are for.
    """

    def __init__(self, timeline: Timeline, hidden: dict[str, Hidden] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.timeline = timeline
        self.hidden = hidden or {}
        self.tag = "activations"
        self.operations = 0
        self._seen: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._blocks: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def add(self, tensor: Any, tag: str) -> None:
        """Note tensors that were there before."""
        for leaf in tree_iter(tensor):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf.untyped_storage(), tag)

    def rename(self, tensor: torch.Tensor, tag: str) -> None:
        """Say anew what a known tensor is for."""
        block = self._blocks.get(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        if block is not None:
            self.timeline.rename(block, tag)

    def _note(self, storage: Any, tag: str) -> None:
        if storage in self._seen:
            return
        size = storage.nbytes()
        if size == 0:
            return
        block = self.timeline.allocate(size, tag)
        self._blocks[storage] = block
        timeline = self.timeline

        def dropped(_: object) -> None:
            timeline.free(block)

        self._seen[storage] = weakref.ref(storage, dropped)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if func is _ask and args[0].is_meta and args[0].dtype == torch.bool:
            # transformers asks whether all rows are unpacked, unpadded...: they are.
            return True
        out = func(*args, **kwargs)
        self.operations += 1
        for leaf in tree_iter(out):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf.untyped_storage(), self.tag)
        if (size := self.hidden.get(func._schema.name)) is not None:
            self.timeline.passing(size(args, kwargs, out), "workspace")
        return out
