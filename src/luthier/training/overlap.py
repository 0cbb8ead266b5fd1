"""Gradients of several processes added up while the backward pass still runs.

The backward pass leaves the last layer's gradients first. As soon as a bucket of them is there, in a step's
last micro-batch, it is sent, on a stream of its own; what is left goes at the end. All processes send the
same buckets in the same order, whatever is ready when.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from luthier.training.world import World, add_over, buckets


class Overlap:
    """The sum of gradients over the parts of a step, begun before they are all there.

    weights, masters: by the same names; a weight's gradient is in its master once the hooks that were
    there before this have run. No weight may be used again after its gradient was made (as a layer that
    runs its backward pass inside another would).
    """

    def __init__(self, weights: Mapping[str, Tensor], masters: Mapping[str, Tensor], world: World) -> None:
        self.world, self.masters = world, list(masters.values())
        self.buckets = list(buckets(list(reversed(self.masters))))
        self.missing: list[int] = []
        self.unused: set[int] = set()
        self.sent, self.armed = 0, False
        cuda = world.device.type == "cuda"
        self.stream = torch.cuda.Stream(world.device) if cuda else None  # type: ignore[no-untyped-call]
        place = {id(master): at for at, bucket in enumerate(self.buckets) for master in bucket}
        self.handles = [
            weight.register_post_accumulate_grad_hook(partial(self._there, place[id(masters[name])]))  # type: ignore[no-untyped-call]
            for name, weight in weights.items()
        ]

    def begin(self) -> None:
        """Before a step's micro-batches."""
        self.missing = [len(bucket) for bucket in self.buckets]
        self.unused.clear()
        self.sent, self.armed = 0, False

    def arm(self) -> None:
        """Before the last micro-batch: the gradients that it leaves are final."""
        self.armed = True

    def _there(self, at: int, _weight: Tensor) -> None:
        if not self.armed:
            return
        self.missing[at] -= 1
        while self.sent < len(self.buckets) and self.missing[self.sent] <= 0:
            self._send()

    def _send(self) -> None:
        """Add the next bucket up; what this process has no gradient of counts as zero."""
        bucket = self.buckets[self.sent]
        self.sent += 1
        grads = []
        for master in bucket:
            if master.grad is None:
                self.unused.add(id(master))
                master.grad = torch.zeros_like(master)
            grads.append(master.grad)
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream())
        with nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
            add_over(grads, self.world.sharers)

    def end(self) -> None:
        """After a step's micro-batches, or what came of them: send what is left, and wait for all of it.

        A weight that no process used stays without a gradient.
        """
        self.armed = False
        while self.sent < len(self.buckets):
            self._send()
        if self.stream is not None:
            torch.cuda.current_stream().wait_stream(self.stream)
        used = self.world.total(*(float(id(master) not in self.unused) for master in self.masters))
        for master, count in zip(self.masters, used, strict=True):
            if not count:
                master.grad = None

    def close(self) -> None:
        """Let go of the weights."""
        for handle in self.handles:
            handle.remove()
