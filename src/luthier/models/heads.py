"""From the last hidden states to logits, as each family defines it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.models.new_tokens import rows_of_head


@dataclass(frozen=True)
class Head:
    """``softcap tanh(multiplier hidden weight' / softcap)``; softcap None leaves the tanh out."""

    weight: Tensor
    multiplier: float = 1.0
    softcap: float | None = None
    new: Tensor | None = None
    """Trained values of a few rows of a weight that is frozen otherwise: [new, width]."""
    places: Tensor | None = None
    """Which rows these are: [new]."""

    def __call__(self, hidden: Tensor) -> Tensor:
        """hidden: [..., width] to fp32 logits [..., vocab]."""
        logits = (hidden @ self.weight.t()).float()
        if self.multiplier != 1:
            logits *= self.multiplier
        if self.softcap:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits


def head_of(model: Any) -> Head | None:
    """The model's head in closed form, or None where it has a bias or a shape of its own.

    Granite divides its logits, Cohere multiplies them, Gemma caps them; transformers names the three
    settings as used here. `head_is_right` holds the answer against the model itself.
    """
    layer = model.get_output_embeddings()
    if layer is None or getattr(layer, "bias", None) is not None or not hasattr(layer, "weight"):
        return None
    config = model.config
    multiplier = 1.0
    if scaling := getattr(config, "logits_scaling", None):
        multiplier = 1.0 / scaling
    if (scale := getattr(config, "logit_scale", None)) is not None:
        multiplier *= float(scale)
    own = rows_of_head(model)
    new, places = (None, None) if own is None else (own.rows, own.places)
    return Head(layer.weight, multiplier, getattr(config, "final_logit_softcapping", None), new, places)


@torch.no_grad()
def head_is_right(model: Any, head: Head) -> bool:
    """Whether head gives the model's own logits on a few tokens."""
    device = head.weight.device
    ids = torch.arange(1, 9, device=device).remainder(head.weight.shape[0]).unsqueeze(0)
    was_training = model.training
    model.eval()
    try:
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        expected = model(input_ids=ids, use_cache=False).logits.float()
    finally:
        model.train(was_training)
    near = 1e-4 if head.weight.dtype == torch.float32 else 3e-2
    return bool(torch.allclose(head(hidden), expected, rtol=near, atol=near * float(expected.abs().max())))
