"""Ways of keeping activations: our own trainer's compiled layers on an H100 beside formula and trace.

``python benchmarks/memory/keeping.py`` prints the table; ``--formula`` leaves the traces out. One row of
tokens, the Llama-3.1-8B shape with random weights, adapters of rank 16 in fp32, peak of the tensors in GB
(1e9 bytes; torch 2.13, 2026-11-22).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from luthier.planning.estimate import kernels_for
from luthier.schema.estimate import TrainingShape
from luthier.schema.recipe import Lora, Method, QLora
from luthier.sizing.model_config import architecture_from_config
from luthier.sizing.training import training_memory

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "max_position_embeddings": 131072,
}
ROWS: tuple[tuple[str, int, str, int | None, float], ...] = (
    # method, tokens, what is kept, layers that holds for, measured
    ("lora", 2048, "none", None, 26.46),
    ("lora", 4096, "none", None, 35.69),
    ("lora", 8192, "none", None, 54.13),
    ("lora", 12288, "none", None, 72.83),
    ("lora", 2048, "selective", None, 23.4),
    ("lora", 16384, "selective", None, 68.2),
    ("lora", 8192, "full", None, 20.6),
    ("lora", 4096, "full", 24, 22.7),
    ("qlora", 8192, "none", None, 43.8),
    ("qlora", 8192, "full", None, 10.28),
)


def step(row: tuple[str, int, str, int | None, float]) -> tuple[Method, TrainingShape]:
    """Method and shape of a row."""
    name, tokens, mode, layers, _ = row
    shape = TrainingShape.model_validate(
        {
            "micro_batch_size": 1,
            "sequence_length": tokens,
            "activation_checkpointing": mode,
            "recomputed_layers": layers,
            "compiled": True,
        }
    )
    return QLora() if name == "qlora" else Lora(), shape


def formula(row: tuple[str, int, str, int | None, float]) -> float:
    """The formula's peak, GB."""
    method, shape = step(row)
    kernels = kernels_for("cuda", "bfloat16", compiled=True)
    arch = architecture_from_config(CONFIG)
    return (
        training_memory(arch, method, shape, dtype="bfloat16", kernels=kernels, hopper=True).peak.total / 1e9
    )


def traced(row: tuple[str, int, str, int | None, float], cache: Path | None = None) -> float:
    """The trace's peak, GB."""
    from luthier.checks.trace.run import trace_training

    method, shape = step(row)
    return trace_training(CONFIG, method, shape, hopper=True, whole=False, cache=cache).allocated / 1e9


def main(words: list[str]) -> None:
    print("| method | tokens | kept | measured | formula | trace |\n|---|---|---|---|---|---|")
    for row in ROWS:
        name, tokens, mode, layers, measured = row
        kept = mode if layers is None else f"{mode}, {layers} layers"
        exact = "" if "--formula" in words else f"{traced(row):.2f}"
        print(f"| {name} | {tokens:,} | {kept} | {measured} | {formula(row):.2f} | {exact} |")


if __name__ == "__main__":
    main(sys.argv[1:])
