"""Merging adapters into weights, and what that changed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.models.lora import merge
from luthier.models.merge_files import FilesMerge, outputs_from_files
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
    before = probe(model)
    merge(model)
    return _difference(packing, next(model.parameters()).dtype, before, probe(model))


def write_and_compare(
    streamed: FilesMerge, out: Path, packing: str, probed: tuple[Tensor, Any] | None, device: torch.device
) -> dict[str, Any] | None:
    """As :func:`merge_and_compare`, from files to files, with no more than a layer in memory.

    probed: what :func:`probe` gave for the trained model, and a model of the architecture without
    weights; None where the base was not packed.
    """
    streamed.write(out)
    if probed is None:
        return None
    before, empty = probed
    after = outputs_from_files(empty, out, partial(probe, device=device), device=device)
    return _difference(packing, streamed.dtype, before, after)


def _difference(packing: str, dtype: torch.dtype, before: Tensor, after: Tensor) -> dict[str, Any]:
    difference = (after - before).abs()
    return {
        "base": packing,
        "weights": str(dtype).removeprefix("torch."),
        "tokens": PROBE_TOKENS,
        "largest_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "scale": float(before.abs().mean()),
        "same_first_choice": float((after.argmax(-1) == before.argmax(-1)).float().mean()),
    }


@torch.no_grad()
def probe(model: Any, *, device: torch.device | None = None) -> Tensor:
    """What the model gives for a fixed row of tokens: [tokens, width] in fp32 on the CPU."""
    weight = model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, weight.shape[0], (1, PROBE_TOKENS), generator=generator)
    was = model.training
    model.eval()
    try:
        out: Tensor = model(input_ids=ids.to(device or weight.device))[0]
    finally:
        model.train(was)
    return out[0].float().cpu()
