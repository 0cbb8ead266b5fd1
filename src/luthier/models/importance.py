"""How strongly each input of a linear layer is driven: where a quantiser must round with care."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from luthier.models.lora import LoraLinear
from luthier.models.packed import PackedLinear
from luthier.schema.protocols import Progress


@torch.no_grad()
def input_importance(
    model: Any, rows: Sequence[Iterable[int]], *, progress: Progress | None = None
) -> dict[str, Tensor]:
    """Mean square of every input of every linear layer but the head, over all tokens of the rows.

    Returns path of the layer -> [in] fp32 on the CPU. It is llama.cpp's importance matrix (the diagonal of
    E[x x'], tools/imatrix), taken on the model as it was trained. rows: token ids, asked one by one.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    head = model.get_output_embeddings()

    def watch(path: str) -> Callable[..., None]:
        def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            flat = inputs[0].detach().float().reshape(-1, inputs[0].shape[-1])
            squares = flat.square().sum(dim=0, dtype=torch.float64)
            sums[path] = sums[path] + squares if path in sums else squares
            counts[path] = counts.get(path, 0) + len(flat)

        return see

    layers = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | LoraLinear | PackedLinear) and module is not head
    ]
    hooks = [module.register_forward_pre_hook(watch(path)) for path, module in layers]
    was = model.training
    model.eval()
    device = next(model.parameters()).device
    try:
        for done, ids in enumerate(rows, 1):
            model(input_ids=torch.tensor([list(ids)], device=device), use_cache=False, logits_to_keep=1)
            if progress is not None:
                progress(done, len(rows))
    finally:
        model.train(was)
        for hook in hooks:
            hook.remove()
    return {path: (total / counts[path]).float().cpu() for path, total in sums.items()}
