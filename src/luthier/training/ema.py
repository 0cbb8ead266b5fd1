"""A moving average of the weights, kept beside them (Polyak and Juditsky 1992)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from luthier.training.sharding import part_of, whole_of


class Trained(Protocol):
    """What holds the weights: `training.optimizer.Optimizer`."""

    masters: dict[str, Tensor]
    model_weights: dict[str, nn.Parameter]

    def round_back(self) -> None: ...


class Average:
    """``a = decay a + (1 - decay) w`` after each update, in fp32; the first update's weights begin it.

    Bytes for each trained weight: 4.
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

    def whole(self) -> dict[str, Tensor]:
        """The average by the model's names. Of divided weights all call it together."""
        weights = self.optimizer.model_weights
        return {name: whole_of(value, weights[name]) for name, value in self.values.items()}

    @torch.no_grad()
    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Take up a saved average."""
        masters, weights = self.optimizer.masters, self.optimizer.model_weights
        assert saved.keys() == masters.keys(), "the average is of other weights"
        self.values = {
            name: part_of(value, weights[name]).to(masters[name].device, torch.float32, copy=True)
            for name, value in saved.items()
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
