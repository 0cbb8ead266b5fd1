"""Random weights for a model that begins from scratch, the same for the same seed."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import torch
from torch import nn

from luthier.files import UNFINISHED
from luthier.models.load import quiet, weight_files

MARK = "scratch.json"
"""Says in a folder that its weights are to be made, and from which seed."""
OUTWARD = ("o_proj", "down_proj")
"""Projections that add to the residual stream."""


def is_scratch(folder: Path) -> bool:
    """Whether the folder's weights are random ones of ours."""
    return (folder / MARK).is_file()


def ensure_weights(folder: Path) -> None:
    """Write the random weights of a model from scratch, unless they are there.

    Normal with a deviation of 0.02; projections into the residual stream are scaled by
    1 / sqrt(2 layers), so that its variance does not grow with depth (Radford et al. 2019, section 2.3).
    The file appears under its name only when it is whole.
    """
    if not is_scratch(folder) or weight_files(folder):
        return
    seed = int(json.loads((folder / MARK).read_text(encoding="utf-8"))["seed"])
    with quiet():
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    deviation = float(getattr(config, "initializer_range", 0.02))
    outward = deviation / math.sqrt(2 * config.num_hidden_layers)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                last = name.rpartition(".")[2]
                std = outward if last in OUTWARD else deviation
                module.weight.normal_(0.0, std, generator=generator)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    module.bias.zero_()
    # Another process may write the same weights; each does so apart, and either's are right.
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as apart:
        with quiet():
            model.save_pretrained(apart)
        for file in Path(apart).glob("*.safetensors*"):
            file.chmod(0o644)
            file.replace(folder / file.name)
