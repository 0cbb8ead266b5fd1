"""The ways to update weights that a recipe may ask for, each as one optimiser of torch's kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from luthier.errors import Unsupported
from luthier.schema.recipe import TrainingChoice
from luthier.training.fused import FusedAdamW, fit_for
from luthier.training.gradients import Gradients
from luthier.training.rounding import RoundedAdamW

Groups = list[dict[str, Any]]


def groups_of(matrices: list[Tensor], others: list[Tensor], choice: TrainingChoice) -> Groups:
    """Parameter groups: what is decayed first. others: all that `update_of` does not give to Muon."""
    decayed = [one for one in others if one.ndim >= 2]
    plain = [one for one in others if one.ndim < 2]
    decay = choice.weight_decay
    kinds = ((matrices, decay, True), (decayed, decay, False), (plain, 0.0, False))
    return [
        {"params": group, "weight_decay": rate} | ({"muon": True} if muon else {})
        for group, rate, muon in kinds
        if group
    ]


def update_of(
    choice: TrainingChoice, groups: Groups, kind: str, follow: Mapping[Tensor, Tensor], gradients: Gradients
) -> torch.optim.Optimizer:
    """The optimiser that the recipe asks for. Raises Unsupported where it needs what is not there.

    kind: of the weights' device. follow: the model's weight of each master that is apart from it.
    """
    betas = (choice.beta1, choice.beta2)
    match choice.optimizer:
        case "adamw":
            masters = [one for group in groups for one in group["params"]]
            wide = all(one.dtype == torch.float32 for one in masters)
            if wide and fit_for([*masters, *follow.values()]):
                return FusedAdamW(groups, betas=betas, weights=follow, gradients=gradients)
            return _adamw(groups, betas, kind)
        case "adamw-bf16" | "adamw-bf16-kahan" as name:
            return RoundedAdamW(groups, lr=0.0, betas=betas, kahan=name == "adamw-bf16-kahan")
        case "muon":
            return MuonAdamW(groups, betas=betas, kind=kind)
        case "adamw-8bit" | "paged-adamw-8bit" as name:
            if kind != "cuda":
                raise Unsupported(
                    f"training.optimizer: {name} works on CUDA only",
                    hint="use adamw, or adamw-bf16 to save memory on a CPU",
                )
            try:
                import bitsandbytes
            except ImportError as error:
                raise Unsupported(
                    f"training.optimizer: {name} needs bitsandbytes ({error})",
                    hint='install it: pip install "luthier[optimizers]"',
                ) from error
            kinds = {
                "adamw-8bit": bitsandbytes.optim.AdamW8bit,
                "paged-adamw-8bit": bitsandbytes.optim.PagedAdamW8bit,
            }
            made: torch.optim.Optimizer = kinds[name](groups, lr=0.0, betas=betas)
            return made


def _adamw(groups: Groups, betas: tuple[float, float], kind: str) -> torch.optim.AdamW:
    fused = kind in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=fused, foreach=False if fused else None)


class MuonAdamW(torch.optim.Optimizer):
    """Muon on the groups marked ``muon``, AdamW on the others, with one state (Jordan et al. 2024).

    Muon's step of a matrix has all singular values near one. It is scaled by 0.2 sqrt(larger side), so that
    it is as large as AdamW's and the same learning rate and decay serve both (Liu et al. 2025, arXiv
    2502.16982). States: one moment a weight of Muon's, two of AdamW's.
    """

    def __init__(self, groups: Groups, *, betas: tuple[float, float], kind: str) -> None:
        muon = [{k: v for k, v in group.items() if k != "muon"} for group in groups if "muon" in group]
        self._muon = torch.optim.Muon(muon, lr=0.0, adjust_lr_fn="match_rms_adamw")
        self._adamw = _adamw([group for group in groups if "muon" not in group], betas, kind)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        assert closure is None
        # Both work on this optimiser's own groups and states, which loading replaces.
        self._muon.param_groups = [group for group in self.param_groups if "ns_steps" in group]
        self._adamw.param_groups = [group for group in self.param_groups if "ns_steps" not in group]
        both: tuple[Any, ...] = (self._muon, self._adamw)  # torch's Muon is not annotated
        for inner in both:
            inner.state = self.state
            if inner.param_groups:
                inner.step()
