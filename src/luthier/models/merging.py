"""Merging adapters into weights, and what that changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from luthier.models.lora import merge
from luthier.models.packed import packing_of

PROBE_TOKENS = 64


def merge_and_compare(model: Any) -> dict[str, Any] | None:
    """Merge all adapters for good; for a packed base also say how far the merged model is from the trained.

    A packed base is unpacked first: the merged weights are those that the adapters were trained beside,
    rounded once to the model's own type. Compared by logits (or hidden states) on tokens drawn from the
    vocabulary. None where the base was not packed.
    """
    packing = packing_of(model)
    if not packing:
        merge(model)
        return None
    before = _outputs(model)
    merge(model)
    after = _outputs(model)
    difference = (after - before).abs()
    return {
        "base": packing,
        "weights": str(next(model.parameters()).dtype).removeprefix("torch."),
        "tokens": PROBE_TOKENS,
        "largest_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "scale": float(before.abs().mean()),
        "same_first_choice": float((after.argmax(-1) == before.argmax(-1)).float().mean()),
    }


@torch.no_grad()
def _outputs(model: Any) -> Tensor:
    """What the model gives for a fixed row of tokens: [tokens, width] in fp32 on the CPU."""
    weight = model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, weight.shape[0], (1, PROBE_TOKENS), generator=generator).to(weight.device)
    was = model.training
    model.eval()
    try:
        out: Tensor = model(input_ids=ids)[0]
    finally:
        model.train(was)
    return out[0].float().cpu()
