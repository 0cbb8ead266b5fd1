"""AdamW over the trainable weights, with fp32 masters where these are held in fewer bits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import CheckpointError, Unsupported
from luthier.schema.recipe import TrainingChoice
from luthier.training.rounding import RoundedAdamW


def learning_rate(step: int, total: int, choice: TrainingChoice) -> float:
    """Rate of a step (counted from 0): linear rise over the warm-up, then the schedule down to zero.

    A function of the step alone, so that a resumed run has nothing to restore.
    """
    peak = choice.learning_rate
    assert peak is not None
    warm = math.ceil(total * choice.warmup_share)
    if step < warm:
        return peak * (step + 1) / warm
    done = (step - warm) / max(1, total - warm)
    match choice.schedule:
        case "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * done))
        case "linear":
            return peak * (1 - done)
        case "constant":
            return peak
        case "wsd":
            # Warm-up, stable, decay: one minus the square root of the part of the decay that is done.
            falling = math.ceil(total * choice.decay_share)
            left = total - step
            return peak if left > falling else peak * (1 - math.sqrt(1 - left / max(1, falling)))


class Optimizer:
    """Decoupled weight decay on matrices, moments in fp32, gradients clipped by their global norm.

    A weight in fp32 is updated in place. One in bf16 gets an fp32 master: gradients are added up
    there in fp32 as each micro-batch leaves them, and the master is rounded back after each step.
    Bytes for each such weight: 2 weight + 4 gradient + 4 master + 8 moments (and 2 for a moment, the
    gradient of the layer at hand).
    """

    def __init__(self, model: nn.Module, choice: TrainingChoice) -> None:
        self.model_weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert self.model_weights, "nothing to train"
        self.masters: dict[str, Tensor] = {}
        self.handles = []
        pure = choice.optimizer == "adamw-bf16"
        for name, weight in self.model_weights.items():
            if pure or weight.dtype == torch.float32:
                self.masters[name] = weight
                continue
            master = weight.detach().float().requires_grad_(True)
            self.masters[name] = master
            handle = weight.register_post_accumulate_grad_hook(_add_to(master))  # type: ignore[no-untyped-call]
            self.handles.append(handle)
        decayed = [master for master in self.masters.values() if master.ndim >= 2]
        plain = [master for master in self.masters.values() if master.ndim < 2]
        groups = [
            {"params": group, "weight_decay": decay}
            for group, decay in ((decayed, choice.weight_decay), (plain, 0.0))
            if group
        ]
        kind = next(iter(self.masters.values())).device.type
        self.adamw = _adamw(choice, groups, kind)
        self.max_norm = choice.max_grad_norm

    def clip(self) -> Tensor:
        """Scale the gradients down to the largest norm allowed; returns the norm before."""
        grads = [master.grad for master in self.masters.values() if master.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        torch.nn.utils.clip_grads_with_norm_(list(self.masters.values()), self.max_norm, norm)
        return norm

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update the weights and forget the gradients."""
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        self.round_back()

    @torch.no_grad()
    def round_back(self) -> None:
        """Give the model's weights the values of their masters."""
        pairs = [(weight, self.masters[name]) for name, weight in self.model_weights.items()]
        apart = [(weight, master) for weight, master in pairs if master is not weight]
        if apart:
            torch._foreach_copy_([weight for weight, _ in apart], [master for _, master in apart])

    def weights(self) -> dict[str, Tensor]:
        """Trained weights by the model's names, in full precision."""
        return dict(self.masters)

    def state(self) -> dict[str, Any]:
        return self.adamw.state_dict()

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy saved weights in; names and shapes must be the trained ones."""
        put_weights(self.masters, weights)
        self.round_back()

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.adamw.load_state_dict(dict(state))

    def close(self) -> None:
        """Let go of the model."""
        for handle in self.handles:
            handle.remove()


def _adamw(choice: TrainingChoice, groups: list[dict[str, Any]], kind: str) -> torch.optim.Optimizer:
    """The optimiser that the recipe asks for. Raises Unsupported where it needs what is not there."""
    betas = (choice.beta1, choice.beta2)
    match choice.optimizer:
        case "adamw":
            fused = kind in ("cpu", "cuda")
            return torch.optim.AdamW(
                groups, lr=0.0, betas=betas, fused=fused, foreach=False if fused else None
            )
        case "adamw-bf16":
            return RoundedAdamW(groups, lr=0.0, betas=betas)
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


@torch.no_grad()
def put_weights(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy saved weights into those of the same names and shapes, rounding to their dtype."""
    if saved.keys() != own.keys():
        raise CheckpointError("the checkpoint holds other weights than this recipe trains")
    for name, weight in own.items():
        if weight.shape != saved[name].shape:
            raise CheckpointError(
                f"the checkpoint's {name} is {list(saved[name].shape)}, "
                f"this recipe trains {list(weight.shape)}"
            )
        weight.copy_(saved[name])


def _add_to(master: Tensor) -> Any:
    """A hook that moves a finished gradient into its fp32 master."""

    def hook(weight: Tensor) -> None:
        assert weight.grad is not None
        if master.grad is None:
            master.grad = weight.grad.float()
        else:
            master.grad += weight.grad
        weight.grad = None

    return hook
