"""AdamW on CUDA in one kernel for all weights: from gradients in either type to the model's own weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from luthier.training.gradients import Gradients

MISSING = (
    "loss and updates run in torch's kernels: those of Luthier need the package triton (pip install triton)"
)


@cache
def kernels() -> Any:
    """`training.kernels`, or None where Triton cannot be imported."""
    try:
        from luthier.training import kernels as found
    except ImportError:
        return None
    return found


def fit_for(tensors: Sequence[Tensor]) -> bool:
    """Whether the kernels take these: each a stretch of a GPU's memory."""
    return all(one.is_cuda and one.is_contiguous() for one in tensors) and kernels() is not None


class FusedAdamW(torch.optim.AdamW):
    """torch's AdamW with its states, in one kernel that reads and writes each number once.

    weights: what each fp32 master is rounded back to after its update. gradients: where they are, in the
    weights' type or in fp32. ``factor``: what all are multiplied with, where they are clipped.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        betas: tuple[float, float],
        weights: Mapping[Tensor, Tensor],
        gradients: Gradients,
    ) -> None:
        super().__init__(groups, lr=0.0, betas=betas, fused=True)
        self.weights, self.gradients = weights, gradients
        self.factor: Tensor | None = None
        self._tables: dict[tuple[int, int], Any] = {}

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every master that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            # Kinds of gradients, whether a weight follows, and updates so far: mostly all the same.
            kinds = defaultdict(list)
            for master in group["params"]:
                if (grad := self.gradients.of(master)) is None:
                    continue
                state = self.state[master]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"] = torch.zeros_like(master, requires_grad=False)
                    state["exp_avg_sq"] = torch.zeros_like(master, requires_grad=False)
                state["step"] += 1
                kind = (grad.dtype, master in self.weights, int(state["step"]))
                kinds[kind].append((master, grad.contiguous(), state))
            for (_, follows, done), found in kinds.items():
                self._update(group, found, done, follows=follows)

    def _update(
        self, group: dict[str, Any], found: list[tuple[Tensor, Tensor, Any]], done: int, *, follows: bool
    ) -> None:
        first = found[0][0]
        if self.factor is None:
            self.factor = torch.ones((), device=first.device)
        kernels().adamw_(
            self._tables.setdefault((id(first), len(found)), kernels().Table()),
            [master for master, _, _ in found],
            [grad for _, grad, _ in found],
            [state["exp_avg"] for _, _, state in found],
            [state["exp_avg_sq"] for _, _, state in found],
            [self.weights[master] for master, _, _ in found] if follows else None,
            factor=self.factor,
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            done=done,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up saved states: of this kind or of torch's, whose counts of updates are on the device."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state["step"] = state["step"].to("cpu", torch.float32)
