"""A moving average of the weights, kept beside them (Polyak and Juditsky 1992)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor


class Trained(Protocol):
    """What holds the weights: `training.optimizer.Optimizer`."""

    masters: dict[str, Tensor]

    def round_back(self) -> None: ...


class Average:
    """``a = decay a + (1 - decay) w`` after each update, in fp32; the first update's weights begin it.

    Of weights that each process has all of. Bytes for each trained weight: 4.
    """

    def __init__(self, optimizer: Trained, decay: float) -> None:
        self.optimizer, self.decay = optimizer, decay
        self.values: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        masters = self.optimizer.masters
        if not self.values:
            self.values = {name: master.detach().float().clone() for name, master in masters.items()}
            return
        for name, value in self.values.items():
            value.lerp_(masters[name].detach().float(), 1 - self.decay)

    @torch.no_grad()
    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Take up a saved average."""
        masters = self.optimizer.masters
        assert saved.keys() == masters.keys(), "the average is of other weights"
        self.values = {
            name: value.to(masters[name].device, torch.float32, copy=True) for name, value in saved.items()
        }

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within the block the model has the averaged weights; afterwards its own, bit for bit."""
        masters = self.optimizer.masters
        with torch.no_grad():
            own = {name: master.detach().to("cpu", copy=True) for name, master in masters.items()}
            self._put(self.values)
        try:
            yield
        finally:
            with torch.no_grad():
                self._put(own)

    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, master in self.optimizer.masters.items():
            master.copy_(values[name])
        self.optimizer.round_back()
