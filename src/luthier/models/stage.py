"""Some of a model's layers, one after another, as one stage of a pipeline of processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import Unsupported
from luthier.models.attention import document_arguments, ends_arguments
from luthier.models.varlen import Kernel


class _Entry(nn.Module):
    """In the place of a stage's first foreign layer: gives what the stage before has sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Tensor] = []

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # What the model has made of it so far, such as a scaled copy, is not for this stage.
        del hidden, args, kwargs
        return self.sent.pop()


class _Elsewhere(nn.Module):
    """In the place of a layer of another stage."""

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        del args, kwargs
        return hidden


class Stage(nn.Module):
    """Layers of one process. The weights keep their names in the model; `keep_stage` makes it.

    tensors, kernel: how the layers are told where documents end (`tasks.causal.CausalObjective`).
    """

    def __init__(self, model: Any, entry: _Entry | None) -> None:
        super().__init__()
        self.model, self.entry = model, entry
        self.tensors = False
        self.kernel: Kernel = "torch"

    def forward(self, x: Tensor, *, positions: Tensor, ends: Tensor, longest: int) -> Tensor:
        """Hidden states [1, tokens, width] for the next stage; of the last one the model's last ones.

        x: [1, tokens] ids in the first stage, else [1, tokens, width]; positions: [1, tokens]; ends:
        [1, documents + 1] as `models.attention.ends_arguments` takes them.
        """
        if self.tensors:
            documents = ends_arguments(ends[0], longest, self.kernel)
        else:
            lengths = tuple(size for size in torch.diff(ends[0]).tolist() if size)
            documents = document_arguments(lengths, device=x.device, tensors=False)
        given: dict[str, Any] = {"input_ids": x}
        if self.entry is not None:
            self.entry.sent.append(x)
            given = {"inputs_embeds": x.detach()}
        out = self.model.base_model(**given, position_ids=positions, use_cache=False, **documents)
        hidden: Tensor = out.last_hidden_state
        return hidden


def keep_stage(model: Any, place: int, count: int) -> tuple[Stage, frozenset[str]]:
    """Keep one of count stages of about as many layers each, in place; trained weights that two stages have.

    The first stage has the embeddings, the last one the norm and the head. Raises Unsupported for another
    build of model and for more stages than layers.
    """
    base = model.base_model
    layers: Any = getattr(base, "layers", None)
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    known = isinstance(layers, nn.ModuleList) and isinstance(getattr(base, "norm", None), nn.Module)
    if not known or head is None or not hasattr(base, "embed_tokens") or base.embed_tokens is not embedding:
        raise Unsupported(
            f"training.parallel.pipeline: {type(model).__name__} is not built of embeddings, layers, norm",
            hint="use training.parallel.shard",
        )
    if count > len(layers):
        raise Unsupported(
            f"training.parallel.pipeline {count}: the model has {len(layers)} layers",
            hint=f"use at most {len(layers)}",
        )
    first, last = place == 0, place == count - 1
    own = range(place * len(layers) // count, (place + 1) * len(layers) // count)
    tied = head.weight is embedding.weight
    for index in range(len(layers)):
        if index not in own:
            layers[index] = _Elsewhere()
    entry = None if first else _Entry()
    if entry is not None:
        layers[0] = entry
    if not first and not (last and tied):
        base.embed_tokens = nn.Identity()
    if not last:
        base.norm = nn.Identity()
        model.set_output_embeddings(nn.Identity())
    shared = tied and embedding.weight.requires_grad and count > 1
    names = {name for name, weight in model.named_parameters() if weight is embedding.weight}
    return Stage(model, entry), frozenset(names if shared else ())
