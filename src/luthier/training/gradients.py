"""The gradients of a step on their way from the model's weights to what updates them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from luthier.training.sharding import own_part


class Gradients:
    """Gradients of 16-bit weights that have fp32 masters.

    They are added up in the masters' ``grad`` in fp32 as each micro-batch leaves them: 4 bytes a weight. Of
    a step whose only micro-batch leaves them (``single``) there is nothing to add up: they stay as they
    are, 2 bytes a weight, where what updates the masters can read them so.
    """

    def __init__(self) -> None:
        self.single = False
        self.own: dict[Tensor, Tensor] = {}
        """Gradients in the weights' type, by master."""
        self.places: dict[Tensor, Tensor] = {}
        """Where these stay from step to step, so that a recorded pass may leave them there."""
        self._filled: set[Tensor] = set()

    def arrive(self, master: Tensor) -> Callable[[Tensor], None]:
        """A hook that takes over a weight's finished gradient."""

        def hook(weight: Tensor) -> None:
            assert weight.grad is not None
            grad = own_part(weight.grad)
            weight.grad = None
            if not self.single or master.grad is not None:
                self._add(master, grad)
            elif (place := self.places.get(master)) is not None:
                # A weight may get its gradient in several parts.
                if master in self._filled:
                    place.add_(grad)
                else:
                    place.copy_(grad)
                self._filled.add(master)
            elif (first := self.own.pop(master, None)) is not None:
                self._add(master, first)
                self._add(master, grad)
            else:
                self.own[master] = grad

        return hook

    @staticmethod
    def _add(master: Tensor, grad: Tensor) -> None:
        if master.grad is None:
            master.grad = grad.to(master.dtype)
        else:
            master.grad += grad

    def of(self, master: Tensor) -> Tensor | None:
        """The step's gradient of a master, in either type."""
        found = self.own.get(master)
        return master.grad if found is None else found

    def all_of(self, masters: Iterable[Tensor]) -> list[Tensor]:
        """The gradients that there are."""
        return [grad for master in masters if (grad := self.of(master)) is not None]

    def norm(self, masters: Iterable[Tensor]) -> Tensor:
        """Norm of all of them."""
        return norm_of(self.all_of(masters))

    def settle(self) -> None:
        """Keep the step's gradients where they are from now on."""
        self.places = dict(self.own)

    def begin(self) -> None:
        """Before a step's micro-batches: empty the places where gradients stay."""
        self._filled.clear()
        if self.single and self.places:
            torch._foreach_zero_(list(self.places.values()))
            self.own = dict(self.places)

    def forget(self, *, places: bool = False) -> None:
        """Let go of the step's gradients, and of the places where they stay if asked."""
        self.own.clear()
        self._filled.clear()
        if places:
            self.places.clear()


def norm_of(grads: Sequence[Tensor]) -> Tensor:
    """Norm of gradients of any types, summed in fp32; zero where there are none."""
    norms: list[Tensor] = []
    for kind in dict.fromkeys(grad.dtype for grad in grads):
        alike = [grad for grad in grads if grad.dtype == kind]
        norms += torch._foreach_norm(alike, 2.0, dtype=torch.float32)
    if not norms:
        return torch.zeros(())
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return norm
