"""Time of the processor to run a layer whose matrices are too small to matter: what launching would take.

    python benchmarks/speed/launches.py [ROUNDS]

For each method, compiled and not: milliseconds of one processor for one layer, forward and backward, from
models of two and of ten layers in turn, one text of four tokens, matrices of 64 x 64. The ratios are what
`sizing.step_time` takes for adapters and four-bit bases; no GPU is needed, compiled rows need a C++ compiler.
Adapters run as the one operation that they are on a GPU.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import sys
import time
from typing import Any
from unittest import mock

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from luthier.models import lora
from luthier.models.packed import pack_linears
from luthier.schema.recipe import Lora
from luthier.training.layers import prepared

FEW, MANY = 2, 10
METHODS = ("full", "attention", "lora", "qlora")


class AsOnGpu:
    """torch, for the module of adapters: it takes their one operation where it is told that it compiles."""

    compiler = mock.Mock(is_compiling=lambda: True)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def build(layers: int, method: str) -> Any:
    """A model of so many layers; adapters beside attention alone, or beside all linear layers."""
    config = Qwen2Config(
        hidden_size=64, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=1,
        num_key_value_heads=1, vocab_size=64, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if method == "full":
        return model.requires_grad_(True)
    model.requires_grad_(False)
    if method == "qlora":
        for layer in model.model.layers:
            pack_linears(layer, "nf4")
    attention = Lora(rank=16, targets=("q_proj", "k_proj", "v_proj", "o_proj"))
    lora.add_lora(model, attention if method == "attention" else Lora(rank=16), dtype=torch.float32)
    return model


def once(model: Any) -> float:
    """Seconds of the processor for one pass forward and backward."""
    given = torch.zeros(1, 4, 64, dtype=torch.bfloat16, requires_grad=True)
    began = time.process_time()
    model.model(inputs_embeds=given, use_cache=False).last_hidden_state.sum().backward()
    taken = time.process_time() - began
    for weight in model.parameters():
        weight.grad = None
    return taken


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    rows = [(method, compiled) for compiled in (True, False) for method in METHODS]
    found: list[list[float]] = [[] for _ in rows]
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(lora, "torch", AsOnGpu()))
        pairs = []
        for method, compiled in rows:
            models = [build(layers, method) for layers in (FEW, MANY)]
            for model in models:
                stack.enter_context(prepared(model, compiled=compiled))
                for _ in range(5):
                    once(model)
            pairs.append(models)
        gc.collect()
        gc.disable()
        for _ in range(rounds):
            for seen, (few, many) in zip(found, pairs, strict=True):
                seen.append((once(many) - once(few)) / (MANY - FEW) * 1e3)
    print("| layers | method | ms of a layer |\n|---|---|---|")
    for (method, compiled), seen in zip(rows, found, strict=True):
        print(
            f"| {'compiled' if compiled else 'plain'} | {method} | {statistics.quantiles(seen, n=4)[0]:.3f} |"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 80)
