"""What updates the trainable weights, with fp32 masters where these are held in fewer bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import CheckpointError
from luthier.schema.recipe import TrainingChoice, without_masters
from luthier.training.division import WHOLE, Division
from luthier.training.fused import FusedAdamW
from luthier.training.gradients import Gradients
from luthier.training.layers import layers_of
from luthier.training.rounding import RoundedAdamW
from luthier.training.sharding import is_divided, own_part
from luthier.training.updates import groups_of, update_of
from luthier.training.world import ALONE, World


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
    gradient of the layer at hand). On CUDA a kernel does all of that at once, and takes the gradients of a
    step of one micro-batch as they are: 2 bytes (`training.gradients`).

    Of a weight that several processes hold together (`training.sharding`) all of this is there for this
    process's part alone; weights and states are given and taken whole.

    With ``training.update_in_backward`` a weight is updated in the backward pass and its gradient dropped:
    ``begin`` says at which rate, and ``clip`` only tells the norm that there was.
    """

    def __init__(
        self, model: nn.Module, choice: TrainingChoice, world: World = ALONE, division: Division = WHOLE
    ) -> None:
        self.world, self.division = world, division
        self.model_weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert self.model_weights, "nothing to train"
        self.masters: dict[str, Tensor] = {}
        self.handles = []
        pure = without_masters(choice.optimizer)
        self.in_backward = choice.update_in_backward
        self._squares: Tensor | None = None
        self.gradients = Gradients()
        follow: dict[Tensor, Tensor] = {}
        for name, weight in self.model_weights.items():
            assert is_divided(weight) or not world.sharded, f"{name} is gathered"
            own = own_part(weight)
            kept = pure or weight.dtype == torch.float32
            if kept and own is weight:
                self.masters[name] = weight
                continue
            # A part shares its memory with the weight.
            master = (own if kept else own.detach().float()).requires_grad_(True)
            self.masters[name] = master
            if not kept:
                follow[master] = own.detach()
            hook = self.gradients.arrive(master)
            self.handles.append(weight.register_post_accumulate_grad_hook(hook))  # type: ignore[no-untyped-call]
        of_muon = _matrices_of_layers(model) if choice.optimizer == "muon" else set()
        matrices = [master for name, master in self.masters.items() if name in of_muon]
        others = [master for name, master in self.masters.items() if name not in of_muon]
        kind = next(iter(self.masters.values())).device.type
        groups = groups_of(matrices, others, choice)
        self.adamw = update_of(choice, groups, kind, follow, self.gradients)
        self.max_norm = choice.max_grad_norm
        if self.in_backward:
            self._update_at_once()

    def clip(self) -> Tensor:
        """Scale the gradients down to the largest norm allowed; returns the norm before."""
        if self.in_backward:
            squares, self._squares = self._squares, None
            return torch.zeros(()) if squares is None else squares.sqrt()
        masters = self.masters.values()
        if self.takes_single:
            norm = self.gradients.norm(masters)
        else:
            norm = self.world.norm(self.division.norm(self.masters))
        update = self.adamw
        launches = update.launches if isinstance(update, FusedAdamW | RoundedAdamW) else None
        if launches is not None:
            # The kernel multiplies with it: one pass over all gradients less.
            launches.factor = (self.max_norm / (norm + 1e-6)).clamp(max=1.0) if self.max_norm else None
            if isinstance(update, FusedAdamW):
                update.prepare()
        elif self.max_norm:
            torch.nn.utils.clip_grads_with_norm_(list(masters), self.max_norm, norm)
        return norm

    @property
    def takes_single(self) -> bool:
        """Whether gradients may stay in the weights' type, where they need not be added up."""
        alone = self.world.size == 1 and not self.division.apart
        return isinstance(self.adamw, FusedAdamW) and alone

    def begin(self, rate: float) -> None:
        """Say at which rate the coming step updates."""
        for group in self.adamw.param_groups:
            group["lr"] = rate

    def _update_at_once(self) -> None:
        """Update each weight when its gradient is there."""
        # By its place: loading a state replaces the groups.
        place = {id(one): at for at, group in enumerate(self.adamw.param_groups) for one in group["params"]}

        def hook_of(weight: Tensor, master: Tensor) -> Callable[[Tensor], None]:
            def hook(_weight: Tensor) -> None:
                grad = self.gradients.of(master)
                assert grad is not None
                square = grad.detach().float().square().sum()
                self._squares = square if self._squares is None else self._squares + square
                groups = self.adamw.param_groups
                try:
                    self.adamw.param_groups = [{**groups[place[id(master)]], "params": [master]}]
                    self.adamw.step()
                finally:
                    self.adamw.param_groups = groups
                master.grad = None
                self.gradients.own.pop(master, None)
                if weight is not master and not self._rounds_back:
                    weight.data.copy_(master.detach())  # rounded back

            return hook

        for name, weight in self.model_weights.items():
            hook = hook_of(weight, self.masters[name])
            # After the hook that brings a gradient to its master.
            handle = weight.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
            self.handles.append(handle)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update the weights and forget the gradients."""
        if self.in_backward:
            return
        self.begin(rate)
        self.adamw.step()
        self.forget()
        if not self._rounds_back:
            self.round_back()

    @property
    def _rounds_back(self) -> bool:
        """Whether the update itself gives the model's weights their masters' values."""
        return isinstance(self.adamw, FusedAdamW)

    def forget(self) -> None:
        """Let go of the step's gradients."""
        self.adamw.zero_grad(set_to_none=True)
        self.gradients.forget()

    @torch.no_grad()
    def round_back(self) -> None:
        """Give the model's weights the values of their masters."""
        pairs = [(own_part(weight), self.masters[name]) for name, weight in self.model_weights.items()]
        apart = [(own, master) for own, master in pairs if own.dtype != master.dtype]
        if apart:
            torch._foreach_copy_([weight for weight, _ in apart], [master for _, master in apart])

    def tensors(self) -> Iterator[Tensor]:
        """All that an update changes in this process: masters and the optimiser's states."""
        yield from self.masters.values()
        for state in self.adamw.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))

    def weights(self) -> dict[str, Tensor]:
        """Trained weights by the model's names, in full precision."""
        return self.division.whole(self.masters, self.model_weights)

    def state(self) -> dict[str, Any]:
        """States of the optimiser. Of divided weights all call it together, and the first is given them."""
        return self.division.whole_state(self.adamw.state_dict(), self._groups(), self.model_weights)

    def _groups(self) -> list[list[str]]:
        """Names of the weights in each group of parameters."""
        names = {id(master): name for name, master in self.masters.items()}
        return [[names[id(master)] for master in group["params"]] for group in self.adamw.param_groups]

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy saved weights in; names and shapes must be the trained ones."""
        put_weights(self.masters, self.division.own(weights, self.model_weights))
        self.round_back()

    def load_state(self, state: Mapping[str, Any]) -> None:
        own = self.division.own_state(dict(state), self._groups(), self.model_weights)
        self.adamw.load_state_dict(own)

    def close(self) -> None:
        """Let go of the model."""
        for handle in self.handles:
            handle.remove()


def _matrices_of_layers(model: nn.Module) -> set[str]:
    """Names of the trainable matrices within the model's repeated layers."""
    inside = {id(one) for layer in layers_of(model) for one in layer.parameters() if one.ndim == 2}
    return {name for name, one in model.named_parameters() if id(one) in inside and one.requires_grad}


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
