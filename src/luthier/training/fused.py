"""AdamW on CUDA in one kernel for all weights: from gradients in either type to the model's own weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from luthier.training.gradients import Gradients

MISSING = (
    "losses take at least twice as long and updates two to ten times as long, with more memory than planned: "
    "their kernels need the package triton (pip install triton)"
)
"""Beside torch's operations on an H100, compiled ones among them, which need Triton too
(benchmarks/speed/results/h100_kernels.jsonl)."""


@cache
def kernels() -> Any:
    """`training.kernels`, or None where Triton cannot be imported."""
    try:
        from luthier.training import kernels as found
    except ImportError:
        return None
    return found


def missing(device: torch.device) -> str | None:
    """What a device does without that these kernels would do, and what it costs; None where nothing is."""
    return MISSING if device.type == "cuda" and kernels() is None else None


@cache
def run_on(device: torch.device) -> bool:
    """Whether the kernels run there: CUDA, and a card that computes in bf16 (Ampere and after)."""
    there = device.type == "cuda" and kernels() is not None
    return there and torch.cuda.get_device_capability(device) >= (8, 0)


def fit_for(tensors: Sequence[Tensor]) -> bool:
    """Whether the kernels take these: each a stretch of a GPU's memory."""
    return all(run_on(one.device) and one.is_contiguous() for one in tensors)


class Launches:
    """What updates in one kernel for all weights keep from step to step."""

    def __init__(self) -> None:
        self.factor: Tensor | None = None
        """What the kernel multiplies gradients with, where they are clipped."""
        self._tables: dict[tuple[int, int], Any] = {}

    def scale(self, device: torch.device) -> Tensor:
        """The factor as the kernel reads it: one where none is set."""
        if self.factor is None:
            self.factor = torch.ones((), device=device)
        return self.factor

    def table(self, fields: Sequence[Sequence[Tensor]]) -> Any:
        """The `kernels.Table` of such tensors, one for the same ones in each step."""
        first = fields[0]
        table = self._tables.setdefault((id(first[0]), len(first)), kernels().Table())
        return table.fill(fields)


@dataclass
class _Kind:
    """Masters of a group that one launch updates."""

    group: dict[str, Any]
    done: int
    """Updates before this one."""
    follows: bool
    masters: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)
    table: Any = None


class FusedAdamW(torch.optim.AdamW):
    """torch's AdamW with its states, in one kernel that reads and writes each number once.

    weights: what each fp32 master is rounded back to after its update. gradients: where they are, in the
    weights' type or in fp32.
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
        self.launches = Launches()
        self._ready: list[_Kind] = []

    def prepare(self) -> None:
        """Find what the coming step updates, while the device still computes its gradients."""
        self._ready = self._kinds() if self.state else []

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every master that has a gradient."""
        assert closure is None
        ready, self._ready = self._ready or self._kinds(), []
        for kind in ready:
            self._update(kind)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, and what was found of them."""
        self._ready = []
        super().zero_grad(set_to_none)

    def _kinds(self) -> list[_Kind]:
        """Masters that have a gradient, by its type, whether a weight follows, and updates so far."""
        found: dict[Any, _Kind] = {}
        for place, group in enumerate(self.param_groups):
            for master in group["params"]:
                if (grad := self.gradients.of(master)) is None:
                    continue
                state = self.state[master]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"] = torch.zeros_like(master, requires_grad=False)
                    state["exp_avg_sq"] = torch.zeros_like(master, requires_grad=False)
                follows, done = master in self.weights, int(state["step"])
                key = (place, grad.dtype, follows, done)
                kind = found.setdefault(key, _Kind(group, done, follows))
                kind.masters.append(master)
                kind.grads.append(grad.contiguous())
                kind.states.append(state)
        for kind in found.values():
            moments = ([state[name] for state in kind.states] for name in ("exp_avg", "exp_avg_sq"))
            following = [[self.weights[master] for master in kind.masters]] if kind.follows else []
            kind.table = self.launches.table([kind.masters, kind.grads, *moments, *following])
        return list(found.values())

    def _update(self, kind: _Kind) -> None:
        torch._foreach_add_([state["step"] for state in kind.states], 1)
        group = kind.group
        kernels().adamw_(
            kind.table,
            factor=self.launches.scale(kind.masters[0].device),
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            done=kind.done + 1,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up saved states: of this kind or of torch's, whose counts of updates are on the device."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state["step"] = state["step"].to("cpu", torch.float32)
