"""AdamW on weights held in bf16 alone: what a step adds is not lost to rounding.

bf16 keeps eight bits of a weight: an update under a 256th of it rounds away, every time. Rounding up with the
probability of what is lost keeps it on average (Gupta et al. 2015, arXiv 1502.02551; for bf16 weights Zamirai
et al. 2020, arXiv 2010.06192). Kahan's way (ibid.) keeps what was rounded off beside the weight, in bf16 too,
and adds it to the next update: nothing of the weights is left to chance. Bytes a weight: 2, its gradient 2,
both moments 2 each, and Kahan's 2.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.sizing.states import UPDATE_NUMBERS
from luthier.training.fused import Launches, fit_for, kernels


class RoundedAdamW(torch.optim.Optimizer):
    """Decoupled weight decay; moments in the weights' own type. Takes weights in bf16 or fp32.

    kahan: weights are rounded to the nearest, and what that loses is kept; else by chance. Moments, which
    are averages of many gradients, are rounded by chance in either.

    The draws come from torch's generator of the weights' device, so that a run resumes exactly. On CUDA all
    weights are updated in one kernel, whose draws follow from one seed that this generator gives.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        kahan: bool = False,
    ) -> None:
        self.kahan = kahan
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        every = [one for group in self.param_groups for one in group["params"]]
        self.launches = Launches() if fit_for(every) else None
        """None where weights are updated one after another."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            found = [weight for weight in group["params"] if weight.grad is not None]
            for weight in found:
                self._begin(weight)
            if found and self.launches is not None:
                self._update_at_once(found, group, self.launches)
                continue
            for weight in found:
                self._update(weight, group)

    def _begin(self, weight: Tensor) -> None:
        """Count an update of a weight; its states, before the first."""
        state = self.state[weight]
        if not state:
            state["step"] = 0
            state["mean"], state["square"] = torch.zeros_like(weight), torch.zeros_like(weight)
            if self.kahan:
                state["lost"] = torch.zeros_like(weight)
        state["step"] += 1

    def _update_at_once(self, weights: Sequence[Tensor], group: dict[str, Any], launches: Launches) -> None:
        """One kernel for all weights of a type that were updated as often."""
        kinds = defaultdict(list)
        for weight in weights:
            kinds[weight.dtype, self.state[weight]["step"]].append(weight)
        for (_, done), found in kinds.items():
            device, states = found[0].device, [self.state[weight] for weight in found]
            grads = [weight.grad.contiguous() for weight in found if weight.grad is not None]
            names = ("mean", "square", "lost") if self.kahan else ("mean", "square")
            kernels().rounded_adamw_(
                launches.table([found, grads, *([state[name] for state in states] for name in names)]),
                seed=torch.randint(0, 1 << 62, (1,), device=device),
                factor=launches.scale(device),
                numbers=_numbers(group, done),
            )

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        assert weight.grad is not None
        whole = [weight, weight.grad, state["mean"], state["square"]]
        if self.kahan:
            whole.append(state["lost"])
        numbers = _numbers(group, state["step"])
        cut = all(tensor.is_contiguous() for tensor in whole)
        # In parts: what an update makes on its way in fp32 is many times a weight's own bytes.
        for start in range(0, weight.numel() if cut else 1, UPDATE_NUMBERS):
            end = start + UPDATE_NUMBERS
            parts = (tensor.view(-1)[start:end] for tensor in whole) if cut else whole
            _update_part(*parts, numbers=numbers)


def _numbers(group: dict[str, Any], done: int) -> tuple[float, ...]:
    """What `_update_part` takes, for the update with this number."""
    first, second = group["betas"]
    return (
        1 - first,
        1 - second,
        1 - second**done,
        group["eps"],
        1 - group["lr"] * group["weight_decay"],
        -group["lr"] / (1 - first**done),
    )


def _update_part(
    weight: Tensor,
    grad: Tensor,
    old_mean: Tensor,
    old_square: Tensor,
    lost: Tensor | None = None,
    *,
    numbers: Sequence[float],
) -> None:
    """Update a weight, its moments and what its rounding has lost in place.

    numbers: what is new in the mean and in the square, the share of the square that is there by now, eps,
    what decay leaves, and the rate, negative.
    """
    first, second, there, eps, kept, rate = numbers
    grad = grad.float()
    before = old_mean.float()
    mean = before + first * (grad - before)
    before = old_square.float()
    square = before + second * (grad.square() - before)
    old_mean.copy_(stochastic(mean, weight.dtype))
    old_square.copy_(stochastic(square, weight.dtype))
    wanted = weight.float() * kept + rate * (mean / ((square / there).sqrt() + eps))
    if lost is None:
        weight.copy_(stochastic(wanted, weight.dtype))
        return
    wanted = wanted + lost
    weight.copy_(wanted)
    lost.copy_(wanted - weight)


def stochastic(values: Tensor, dtype: torch.dtype) -> Tensor:
    """fp32 values in dtype; to bf16 up or down, each with the chance that makes the mean exact."""
    if dtype != torch.bfloat16:
        return values.to(dtype)
    # A bf16 number is the upper half of an fp32 one: adding a random lower half carries into it now and then.
    chance = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, device=values.device)
    bits = values.contiguous().view(torch.int32)
    carried = ((bits + chance) & -65536).view(torch.float32)
    return torch.where(values.isfinite(), carried, values).to(dtype)
