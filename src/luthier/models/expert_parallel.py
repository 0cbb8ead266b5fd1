"""Experts of a mixture divided over processes: each has some of every layer's.

All processes route the same tokens in the same way; each runs its own experts on the tokens that chose them,
and one sum over the processes puts the results together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import Unsupported
from luthier.models.exchange import Group, added, fanned
from luthier.models.experts import PARTS, LoraExperts, expert_layers


class LocalExperts(nn.Module):
    """Some experts of a layer, as many on each process, for all of its tokens."""

    def __init__(self, base: Any, group: Group) -> None:
        super().__init__()
        place, count = group.rank(), group.size()
        self.group, self.count = group, base.num_experts // count
        self.first = place * self.count
        for name in PARTS:
            whole = getattr(base, name)
            part = whole.detach().chunk(count)[place].clone()
            setattr(base, name, nn.Parameter(part, requires_grad=whole.requires_grad))
            self.register_parameter(name, getattr(base, name))
        base.num_experts = self.count
        # Beside the tree of modules: its weights stand here, under the same names.
        self._base = (base,)
        self.train(base.training)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden_states: [tokens, width]; the experts of each token and their weights: [tokens, k]."""
        hidden, weights = fanned(self.group, hidden_states, top_k_weights)
        own = (top_k_index >= self.first) & (top_k_index < self.first + self.count)
        token, choice = own.nonzero(as_tuple=True)
        rows, shares = hidden[token], weights[token, choice, None]
        if token.numel():
            rows = self._base[0](rows, top_k_index[token, choice, None] - self.first, shares)
        else:
            rows = rows * shares  # nothing, but what leads back to the exchange that the others wait in
        out = torch.zeros_like(hidden).index_add(0, token, rows.to(hidden.dtype))
        return added(out, self.group)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """Move with the model; the base's weights are these."""
        found = super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        for name in PARTS:
            setattr(self._base[0], name, getattr(self, name))
        return found


def divide_experts(model: Any, group: Group) -> dict[str, int]:
    """Keep this process's experts of every layer, in place; weights that are cut, with the dimension.

    Raises Unsupported for a model without experts in the known layout, before anything is changed.
    """
    paths = expert_layers(model)
    if not paths or any(isinstance(part, LoraExperts) for part in model.modules()):
        raise Unsupported(
            f"training.parallel.expert: {type(model).__name__} has no experts that are divided",
            hint="use training.parallel.shard; leave method.experts out",
        )
    for path in paths:
        base: Any = model.get_submodule(path)
        others = {name for name, _ in base.named_parameters()} - set(PARTS)
        if others or base.num_experts % group.size():
            raise Unsupported(
                f"training.parallel.expert: {base.num_experts} experts of {type(model).__name__} are not "
                f"divided by {group.size()}",
                hint="use a number that divides them, or training.parallel.shard",
            )
    for path in paths:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, LocalExperts(model.get_submodule(path), group))
    return {f"{path}.{part}": 0 for path in paths for part in PARTS}
