"""Forward and backward pass of a micro-batch: launched kernel by kernel, or recorded once and replayed.

A small model's step is over sooner than its kernels can be launched one by one. A CUDA graph launches
them all at once, but holds for one set of shapes and addresses: batches are therefore filled up to one of a
few lengths (`Recordable.fixed`), and gradients stay where they are from step to step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from luthier.training.gradients import Gradients
from luthier.training.guard import ran_out
from luthier.training.objective import Loss, MicroBatch, Objective, to_device

Tensors = tuple[Tensor, ...]
Shapes = tuple[torch.Size, ...]
MOST = 16
"""Recorded graphs at most; batches of further shapes are launched kernel by kernel."""


class Recordable(Protocol):
    """An objective whose loss can be computed from tensors alone, without asking the device on the way."""

    @property
    def recordable(self) -> bool:
        """Whether that holds for the model at hand."""

    def fixed(self, batch: MicroBatch) -> Tensors:
        """The micro-batch as tensors of one of few sets of shapes, filled up with what carries no loss."""

    def total(self, model: Any, *tensors: Tensor) -> Tensor:
        """The sum of losses of such tensors: that of the batch they were made of."""


@dataclass(frozen=True)
class _Recording:
    """A graph with the places that it reads and the one that it writes."""

    graph: torch.cuda.CUDAGraph
    inputs: Tensors
    scale: Tensor
    loss: Tensor

    def replay(self, tensors: Tensors, share: float) -> Tensor:
        """Run it on other tensors of the same shapes."""
        for own, given in zip(self.inputs, tensors, strict=True):
            own.copy_(given, non_blocking=True)
        self.scale.fill_(share)
        self.graph.replay()
        return self.loss.clone()


class Passes:
    """Runs micro-batches forward and backward; their gradients add up in the masters.

    Kernel by kernel, unless ``record``: then a set of shapes that comes again is recorded, and replayed
    from then on. masters: the weights that get the gradients, by name; arriving: gradients on their way
    there. Goes back to kernel by kernel for good, and says why, where recording fails or memory runs out.
    through: how the objective is called where nothing is recorded.
    """

    def __init__(
        self,
        model: Any,
        objective: Objective,
        masters: Mapping[str, Tensor],
        *,
        through: Callable[[Objective, Any, MicroBatch], Loss],
        record: bool,
        say: Callable[[str], None],
        arriving: Gradients | None = None,
    ) -> None:
        self.model, self.objective, self.masters, self.say = model, objective, masters, say
        self.through, self.arriving = through, arriving or Gradients()
        self.device = next(iter(masters.values())).device
        self.source: Any = objective if record and getattr(objective, "recordable", False) else None
        self.met: set[Shapes] = set()
        self.recordings: dict[Shapes, _Recording] = {}
        self.gradients: dict[str, Tensor] = {}
        self.settled = self.single = self.added_up = False
        self.pool: Any = None

    @property
    def recording(self) -> bool:
        """Whether a pass may be recorded or replayed."""
        return self.source is not None

    def begin(self) -> None:
        """Before a step's micro-batches: recorded passes leave gradients where they stay."""
        if not self.settled:
            return
        if not self.single:
            self.arriving.single = False  # what was recorded adds up in fp32
        self.arriving.begin()
        if self.gradients:
            torch._foreach_zero_(list(self.gradients.values()))
        for name, gradient in self.gradients.items():
            self.masters[name].grad = gradient

    def end(self, *, settled: bool) -> None:
        """After a step's micro-batches. settled: those that follow may be recorded."""
        self.added_up = self.added_up or not self.arriving.single
        if not self.recording or not settled or self.settled:
            return
        if self.added_up and self.arriving.single:
            return  # an epoch's last, smaller step: what stays from here on would serve no other one
        grads = {name: master.grad for name, master in self.masters.items()}
        self.gradients = {name: grad for name, grad in grads.items() if grad is not None}
        self.arriving.settle()
        self.single = bool(self.arriving.places)
        self.settled = bool(self.gradients or self.arriving.places)

    def __call__(self, batch: MicroBatch, share: float, between: Callable[[], None]) -> Tensor:
        """The micro-batch's losses times share, detached; between is called before the backward pass."""
        if not self.recording:
            found = self.through(self.objective, self.model, to_device(batch, self.device))
            return _backward(found.total * share, between)
        tensors = self.source.fixed(batch)
        shapes = tuple(tensor.shape for tensor in tensors)
        new = shapes not in self.recordings
        alike = self.settled and self.single == self.arriving.single
        wanted = new and alike and shapes in self.met and len(self.recordings) < MOST
        if wanted and not self._record(shapes, tensors):
            return self(batch, share, between)
        if alike and (recording := self.recordings.get(shapes)) is not None:
            return recording.replay(tensors, share)
        self.met.add(shapes)
        return _backward(self._total(tensors) * share, between)

    def _total(self, tensors: Tensors) -> Tensor:
        """The loss of such tensors, wherever they are."""
        moved = (one.to(self.device, non_blocking=True) for one in tensors)
        total: Tensor = self.source.total(self.model, *moved)
        return total

    def forget(self, why: str) -> None:
        """Give the recordings' memory back and go on kernel by kernel."""
        if self.recording:
            self.say(f"steps are launched kernel by kernel from here on: {why}")
        self.source = None
        self.recordings.clear()
        self.gradients.clear()
        self.arriving.forget(places=True)
        self.settled = False
        self.pool = None

    def _record(self, shapes: Shapes, tensors: Tensors) -> bool:
        """Record the passes of one set of shapes; whether it could be done. Nothing is computed yet."""
        # What passes before this one have left free would be held twice.
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        inputs = tuple(one.to(self.device, copy=True) for one in tensors)
        scale = torch.ones((), device=self.device)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.pool):
                kept = _backward(self._total(inputs) * scale, lambda: None)
        except RuntimeError as error:
            torch.cuda.synchronize(self.device)
            kept_back = {id(master) for master in self.masters.values()}
            for weight in self.model.parameters():
                if id(weight) not in kept_back:
                    weight.grad = None  # on its way to its master when the recording broke off
            out = "too little memory to record them"
            self.forget(out if ran_out(error) else str(error).splitlines()[0])
            return False
        self.pool = graph.pool()
        self.recordings[shapes] = _Recording(graph, inputs, scale, kept)
        return True


def _backward(loss: Tensor, between: Callable[[], None]) -> Tensor:
    between()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()
