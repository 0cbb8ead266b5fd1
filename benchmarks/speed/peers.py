"""Other trainers' steps on the same shape: torchtune's compiled recipe, plain transformers + PEFT.

    python benchmarks/speed/peers.py OUT.jsonl torchtune=2,4 plain=3 liger=3

Each name is followed by the micro-batches (rows of 2,048 tokens) to try. torchtune 0.6.1: its Llama 3.1
builder with adapters on all linear layers, per-layer compile, compiled chunked loss, bf16 adapters, as its
LoRA recipe sets them. plain: transformers' model with PEFT's adapters in bf16; liger: the same with Liger's
kernels and fused loss. No checkpointing; AdamW, fused; two warm-up steps, the median of six.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
from shapes import SHAPES, build, flops

NAME, LENGTH = "llama-3.1-8b", 2048
DATASHEET = 989.4e12


def timed(step: Callable[[], float]) -> tuple[list[float], float]:
    seconds, loss = [], 0.0
    for _ in range(8):
        began = time.perf_counter()
        loss = step()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return seconds[2:], loss


def report(put: Callable[[dict[str, Any]], None], name: str, rows: int, step: Callable[[], float]) -> None:
    try:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        seconds, loss = timed(step)
        took = statistics.median(seconds)
        put({
            "peer": name, "rows": rows, "tokens_per_second": rows * LENGTH / took, "step_ms": took * 1e3,
            "mfu_datasheet": flops(NAME, [LENGTH] * rows, "lora") / took / DATASHEET,
            "allocated_gb": torch.cuda.max_memory_allocated() / 1e9, "loss": loss,
        })  # fmt: skip
    except Exception as error:  # the other rows are wanted all the same
        put({"peer": name, "rows": rows, "error": f"{type(error).__name__}: {error}"[:600]})


def torchtune(put: Callable[[dict[str, Any]], None], sizes: list[int]) -> None:
    from torchtune import training
    from torchtune.models.llama3_1 import lora_llama3_1
    from torchtune.modules.loss import CEWithChunkedOutputLoss
    from torchtune.modules.peft import get_adapter_params, set_trainable_params

    c = SHAPES[NAME]
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        model = lora_llama3_1(
            lora_attn_modules=["q_proj", "k_proj", "v_proj", "output_proj"], apply_lora_to_mlp=True,
            apply_lora_to_output=False, vocab_size=c.vocab_size, num_layers=c.num_hidden_layers,
            num_heads=c.num_attention_heads, num_kv_heads=c.num_key_value_heads, embed_dim=c.hidden_size,
            max_seq_len=131072, intermediate_dim=c.intermediate_size, attn_dropout=0.0, norm_eps=1e-5,
            rope_base=500000, lora_rank=16, lora_alpha=32, lora_dropout=0.0,
        )  # fmt: skip
    torch.set_default_dtype(torch.float32)
    set_trainable_params(model, get_adapter_params(model))
    model = model.to_empty(device="cuda")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0) if "norm" in name or "scale" in name else weight.normal_(0, 0.02)
    with torch.device("cuda"):
        for part in model.modules():
            if hasattr(part, "rope_init"):
                part.rope_init()
    model.train()
    loss = CEWithChunkedOutputLoss()
    model.set_num_output_chunks(loss.num_output_chunks)
    training.compile_model(model, verbose=False)
    compiled = training.compile_loss(loss, verbose=False)
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=1e-5, fused=True)
    for rows in sizes:
        ids = torch.randint(0, c.vocab_size, (rows, LENGTH), device="cuda")
        labels = torch.hstack((ids[:, 1:], torch.full((rows, 1), -100, device="cuda")))

        def step(ids: Any = ids, labels: Any = labels) -> float:
            value = compiled(model(ids), labels)
            value.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return float(value)

        report(put, "torchtune", rows, step)


def plain(put: Callable[[dict[str, Any]], None], sizes: list[int], *, liger: bool) -> None:
    import peft

    if liger:
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama(fused_linear_cross_entropy=True)
    base = build(NAME, dtype=torch.bfloat16, device="cuda")
    config = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config, autocast_adapter_dtype=False)
    model.train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    for rows in sizes:
        ids = torch.randint(0, SHAPES[NAME].vocab_size, (rows, LENGTH), device="cuda")

        def step(ids: Any = ids) -> float:
            value = model(input_ids=ids, labels=ids).loss
            value.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return float(value)

        report(put, "plain + Liger" if liger else "plain", rows, step)


def versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "transformers", "peft", "torchtune", "torchao", "liger-kernel"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    out = Path(sys.argv[1])

    def put(record: dict[str, Any]) -> None:
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)

    put({"versions": versions()})
    for text in sys.argv[2:]:
        name, _, sizes = text.partition("=")
        wanted = [int(size) for size in sizes.split(",")]
        if name == "torchtune":
            torchtune(put, wanted)
        else:
            plain(put, wanted, liger=name == "liger")
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
