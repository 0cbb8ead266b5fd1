"""Measure the memory of training steps of our own trainer on one CUDA GPU, beside what the formula says.

``python benchmarks/memory/measure_gpu.py OUT.json`` builds random models of real shapes on the GPU, runs
three steps of each shape and prints one line a run. Nothing is fetched.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

from luthier.schema.estimate import TrainingShape
from luthier.schema.recipe import Full, Lora, Method, TrainingChoice
from luthier.sizing.activations import OURS
from luthier.sizing.model_config import architecture_from_config
from luthier.sizing.training import training_memory

LLAMA = {"model_type": "llama", "vocab_size": 128256, "max_position_embeddings": 131072}
CONFIGS: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": LLAMA
    | {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
    "Llama-3.2-1B": LLAMA
    | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "Qwen2.5-0.5B": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "max_position_embeddings": 32768,
    },
    "Qwen3-1.7B": {
        "model_type": "qwen3",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "max_position_embeddings": 40960,
    },
}
# (model, method, micro-batch, sequence, documents a row, checkpointing, accumulation)
RUNS: tuple[tuple[str, Method, int, int, int, str, int], ...] = (
    ("Qwen2.5-0.5B", Lora(), 4, 2048, 1, "none", 1),
    ("Qwen2.5-0.5B", Lora(), 4, 2048, 1, "full", 2),
    ("Qwen2.5-0.5B", Full(), 4, 2048, 1, "none", 1),
    ("Qwen2.5-0.5B", Full(), 8, 1024, 4, "full", 2),
    ("Qwen3-1.7B", Lora(rank=32), 2, 2048, 1, "none", 1),
    ("Qwen3-1.7B", Full(), 2, 2048, 1, "full", 1),
    ("Llama-3.2-1B", Lora(targets=("q_proj", "v_proj")), 4, 1024, 1, "none", 1),
    ("Llama-3.2-1B", Full(), 2, 2048, 1, "none", 1),
    ("Llama-3.2-1B", Full(), 1, 4096, 8, "full", 2),
    ("Llama-3.1-8B", Lora(), 1, 2048, 1, "none", 1),
    ("Llama-3.1-8B", Lora(), 2, 2048, 4, "none", 2),
    ("Llama-3.1-8B", Lora(), 4, 2048, 1, "full", 1),
    ("Llama-3.1-8B", Lora(rank=64), 1, 8192, 1, "full", 2),
)


def build(name: str, method: Method) -> Any:
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    from luthier.models.lora import add_lora

    config = CONFIG_MAPPING[CONFIGS[name]["model_type"]](**CONFIGS[name])
    config._attn_implementation = "sdpa"
    with torch.device("cuda"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if isinstance(method, Lora):
        add_lora(model, method, seed=0)
    return model


def measure(run: tuple[str, Method, int, int, int, str, int]) -> dict[str, Any]:
    import torch

    from luthier.tasks.causal import causal_objective
    from luthier.training.objective import OnDevice
    from luthier.training.optimizer import Optimizer

    name, method, micro, length, documents, mode, accumulation = run
    model = build(name, method)
    objective = causal_objective(model)
    optimizer = Optimizer(model, TrainingChoice(learning_rate=1e-5))
    model.train()
    if mode == "full":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.randint(0, model.config.vocab_size, (micro, length), device="cuda")
    labels = ids.clone()
    labels[:, : length // 2] = -100
    places = torch.arange(length, device="cuda").expand(micro, length)
    each = length // documents
    batch = OnDevice(ids, labels, (places % each).contiguous(), (places // each + 1).contiguous())
    phases: dict[str, int] = {}
    seconds = 0.0
    with objective.scope(model):
        for number in range(3):
            gc.collect()
            if number == 1:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(accumulation):
                if number == 2:
                    torch.cuda.reset_peak_memory_stats()
                loss = objective(model, batch).total
                if number == 2:
                    phases["forward"] = torch.cuda.max_memory_allocated()
                    torch.cuda.reset_peak_memory_stats()
                loss.backward()
                del loss
                if number == 2:
                    phases["backward"] = torch.cuda.max_memory_allocated()
            optimizer.clip()
            optimizer.step(1e-5)
            torch.cuda.synchronize()
            seconds = time.perf_counter() - began
            if number == 1:
                allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    shape = TrainingShape(
        micro_batch_size=micro,
        sequence_length=length,
        documents=documents,
        trained_share=0.5,
        activation_checkpointing=mode,
        batch_size=micro * accumulation,
    )
    found = training_memory(
        architecture_from_config(CONFIGS[name]),
        method,
        shape,
        dtype="bfloat16",
        kernels=OURS,
        hopper=torch.cuda.get_device_capability() >= (9, 0),
    )
    free, total = torch.cuda.mem_get_info()
    return {
        "model": name,
        "method": method.model_dump(mode="json"),
        "shape": shape.model_dump(mode="json"),
        "allocated": allocated,
        "reserved": reserved,
        "phases": phases,
        "seconds": seconds,
        "tokens_per_second": micro * length * accumulation / seconds,
        "formula": found.peak.total,
        "outside_torch": total - free - torch.cuda.memory_reserved(),
        "documents_path": objective.documents,
        "head": objective.head is not None,
    }


def main() -> None:
    import torch
    import transformers

    torch.cuda.init()
    free, total = torch.cuda.mem_get_info()
    rows = []
    for run in RUNS:
        try:
            row = measure(run)
        except torch.cuda.OutOfMemoryError as error:
            print(run[0], run[1].name, "out of memory", str(error)[:80], flush=True)
            continue
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        rows.append(row)
        error = row["formula"] / row["allocated"] - 1
        print(
            f"{run[0]} {run[1].name} {run[2:]} allocated {row['allocated'] / 2**30:.2f} reserved "
            f"{row['reserved'] / 2**30:.2f} formula {error:+.2%} {row['tokens_per_second']:.0f} tokens/s",
            flush=True,
        )
    document = {
        "device": torch.cuda.get_device_name(),
        "memory": total,
        "context_at_start": total - free,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "configs": CONFIGS,
        "rows": rows,
    }
    Path(sys.argv[1]).write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
