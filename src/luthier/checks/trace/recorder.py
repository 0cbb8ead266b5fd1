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

ALONE = 4
"""References to a tensor that autograd alone holds while a sum of it is dispatched to Python."""
_add = torch.ops.aten.add.Tensor
_ask = torch.ops.aten._local_scalar_dense.default


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the storages of every operation's outputs, and when they die.

    hidden: operation name -> bytes that it allocates unseen. flops: products are counted by torch's own
    formulas. ``tag`` names what new storages are for; while ``blind`` none is noted;
    ``inside`` a graph sums are no gathering of gradients.
    """

    def __init__(self, timeline: Timeline, hidden: dict[str, Hidden] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.timeline = timeline
        self.hidden = hidden or {}
        self.tag = "activations"
        self.blind = False
        self.inside = False
        self.operations = 0
        self._seen: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._blocks: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._owners: dict[int, int] = {}

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
        self._own(storage, self.timeline.allocate(size, tag))

    def _own(self, storage: Any, block: int) -> None:
        """Free the block when this storage and all others that own it are gone."""
        self._blocks[storage] = block
        owners, timeline = self._owners, self.timeline
        owners[block] = owners.get(block, 0) + 1

        def dropped(_: object) -> None:
            owners[block] -= 1
            if not owners[block]:
                timeline.free(block)

        self._seen[storage] = weakref.ref(storage, dropped)

    def _accumulate(self, func: Any, args: tuple[Any, ...], out: Any) -> None:
        """Let a sum of gradients overwrite the first of them, as autograd does where nobody else holds it.

        While operations are recorded it adds out of place instead.
        """
        if self.inside or func is not _add or torch.is_grad_enabled() or len(args) != 2:
            return
        old, new = args
        if not (isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor)):
            return
        if old.shape != new.shape or old.dtype != new.dtype:
            return
        for mine in (old, new):
            # A view keeps its base alive, and what is shared is left as it is.
            block = self._blocks.get(mine.untyped_storage())  # type: ignore[no-untyped-call]
            if block is not None and not mine._is_view() and mine._use_count() <= ALONE:  # type: ignore[attr-defined]
                self._own(out.untyped_storage(), block)
                return

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
        if self.blind:
            return out
        self._accumulate(func, args, out)
        for leaf in tree_iter(out):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf.untyped_storage(), self.tag)
        size = self.hidden.get(func._schema.name)
        # What ATen takes for itself no generated kernel takes.
        if size is not None and not (self.inside and func.namespace == "aten"):
            self.timeline.passing(size(args, kwargs, out), "workspace")
        return out
