"""Folders of models with random weights of the real shapes, for what takes a model from a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from shapes import SHAPES
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

LAYERS = int(os.environ.get("LAYERS", "0"))
"""Layers of a try; all when 0."""


def folder_of(name: str, folders: Path) -> Path:
    """A model's folder, written if it is not there: random weights, and a tokenizer of single bytes."""
    folder = folders / name
    if (folder / "written").exists():
        return folder
    config = SHAPES[name]
    if LAYERS:
        config.num_hidden_layers = LAYERS
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:LAYERS]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    config.architectures, config.dtype = [type(model).__name__], "bfloat16"
    config.save_pretrained(folder)
    pool = torch.randn(1 << 24).mul_(0.02).to(torch.bfloat16)
    weights, parts, held = dict(model.named_parameters()), [], 0
    parts.append({})
    for name_, weight in weights.items():
        count = weight.numel()
        if weight.ndim == 1:
            made = torch.full(weight.shape, 0.0 if name_.endswith("bias") else 1.0, dtype=torch.bfloat16)
        else:
            made = pool.repeat(-(-count // len(pool)))[:count].view(weight.shape).contiguous()
        if held > 4e9:
            parts.append({})
            held = 0
        parts[-1][name_] = made
        held += made.numel() * 2
    names = {}
    for index, part in enumerate(parts, 1):
        file = f"model-{index:05d}-of-{len(parts):05d}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        names |= dict.fromkeys(part, file)
    total = sum(weight.numel() * 2 for weight in weights.values())
    index_file = {"metadata": {"total_size": total}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_file))
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*special, *letters]
    words += [f"<r{i}>" for i in range(config.vocab_size - len(words))]
    tokenizer = Tokenizer(
        models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], unk_token=words[0])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    roles = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), special, strict=True))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="right", **roles)
    fast.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    fast.save_pretrained(folder)
    (folder / "written").touch()
    return folder
