"""Time of the processor to run a layer whose matrices are too small to matter: what launching would take.

    python benchmarks/speed/launches.py [ROUNDS]

For each method, compiled and not: milliseconds of one processor for one layer, forward and backward, from
models of two and of ten layers in turn, one text of four tokens, matrices of 64 x 64. The ratios are what
`sizing.step_time` takes for adapters, four-bit bases, passes that are repeated and weights that two devices
divide (the other one is imagined, so that nothing is sent). No GPU is needed; compiled rows need a C++
compiler. Adapters run as the one operation that they are on a GPU.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import sys
import time
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoModelForCausalLM, Qwen2Config

from luthier.models import lora
from luthier.models.packed import pack_linears
from luthier.schema.recipe import Lora
from luthier.training.layers import prepared
from luthier.training.sharding import at_once, divide

FEW, MANY = 2, 10
METHODS = ("full", "attention", "lora", "qlora", "full again")
DIVIDED = tuple(f"{method} by {one}" for method in ("full", "lora") for one in ("layer", "backward", "step"))
"""Weights over two devices, by how long they stay gathered (``training.parallel.reshard``)."""


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
    if method.startswith("full"):
        return model.requires_grad_(True)
    model.requires_grad_(False)
    if method == "qlora":
        for layer in model.model.layers:
            pack_linears(layer, "nf4")
    attention = Lora(rank=16, targets=("q_proj", "k_proj", "v_proj", "o_proj"))
    lora.add_lora(model, attention if method == "attention" else Lora(rank=16), dtype=torch.float32)
    return model


def ready(layers: int, method: str) -> tuple[Any, Any]:
    """The model, and what its work goes through."""
    kind, _, reshard = method.partition(" by ")
    model = build(layers, kind)
    if not reshard:
        return model, at_once
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("replicate", "shard"))
    world: Any = SimpleNamespace(
        side=lambda *_: mesh, parallel=SimpleNamespace(reshard=reshard), device=torch.device("cpu"),
        sizes={"replicate": 1},
    )  # fmt: skip
    divided = divide(model, world, masters=True)
    divided.begin(last=reshard != "step")  # as all micro-batches of a step but the last
    return model, divided


def once(model: Any, through: Any) -> float:
    """Seconds of the processor for one pass forward and backward."""
    given = torch.zeros(1, 4, 64, dtype=torch.bfloat16, requires_grad=True)

    def work() -> torch.Tensor:
        found: torch.Tensor = model.model(inputs_embeds=given, use_cache=False).last_hidden_state.sum()
        return found

    began = time.process_time()
    through(work).backward()
    taken = time.process_time() - began
    for weight in model.parameters():
        weight.grad = None
    return taken


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    rows = [(method, compiled) for compiled in (True, False) for method in METHODS + DIVIDED * compiled]
    found: list[list[float]] = [[] for _ in rows]
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(lora, "torch", AsOnGpu()))
        pairs = []
        for method, compiled in rows:
            models = [ready(layers, method) for layers in (FEW, MANY)]
            for model, through in models:
                keeping: Any = "full" if method.endswith("again") else "none"
                stack.enter_context(prepared(model, keeping=keeping, compiled=compiled))
                for _ in range(5):
                    once(model, through)
            pairs.append(models)
        gc.collect()
        gc.disable()
        for _ in range(rounds):
            for seen, (few, many) in zip(found, pairs, strict=True):
                seen.append((once(*many) - once(*few)) / (MANY - FEW) * 1e3)
    print("| layers | method | ms of a layer |\n|---|---|---|")
    for (method, compiled), seen in zip(rows, found, strict=True):
        print(
            f"| {'compiled' if compiled else 'plain'} | {method} | {statistics.quantiles(seen, n=4)[0]:.3f} |"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 80)
